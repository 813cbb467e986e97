// "Log": who changed what and when, what was before and after, and "Undo".

import { h } from "../dom.js";
import { connectApi } from "./api.js";
import { changeTable, differences } from "./changes.js";
import { agoTime, fromAddress, queryOf, searchBox, stateBox, toAddress } from "./list-page.js";
import { follow } from "./live.js";
import { confirmDialog, debounce, toast } from "./ui.js";

const DEFAULTS = { search: "" };
const LIMIT = 50;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = {
    config,
    api: connectApi(config),
    choice: fromAddress(DEFAULTS),
    rows: new Map(),
    next: null,
    asked: 0,
  };
  page.state = stateBox(() => load(page));
  page.body = h("tbody", { role: "rowgroup" });
  page.table = table(page.body);
  page.older = h("button", { type: "button", class: "btn btn-outline-contrast" }, "Older");
  page.older.addEventListener("click", () => load(page, page.next));
  page.count = h("p", { class: "lab-quiet", role: "status" });
  page.body.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-undo]");
    if (button) undo(page, page.rows.get(Number(button.dataset.undo)));
  });
  const again = debounce(() => load(page), 300);
  const search = searchBox({
    label: "Search the log",
    value: page.choice.search,
    placeholder: "A name, or words of the change",
    onInput(value) {
      page.choice.search = value;
      toAddress(page.choice, DEFAULTS);
      again();
    },
  });
  root.append(
    h("div", { class: "lab-heading" }, h("h1", { class: "h3" }, "Log")),
    h("div", { class: "lab-tools" }, search.node),
    page.state.node,
    page.table,
    page.count,
    page.older,
  );
  page.table.hidden = true;
  page.older.hidden = true;
  follow(config, {});
  load(page);
}

function table(body) {
  const heads = ["When", "Who", "What happened", ""].map((name) =>
    h("th", { scope: "col", role: "columnheader" }, name || h("span", { class: "visually-hidden" }, "Undo")),
  );
  return h(
    "table",
    { class: "table align-top lab-cards-table lab-log-table", role: "table" },
    h("caption", { class: "visually-hidden" }, "Changes, the newest first"),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)),
    body,
  );
}

// Without "before" the newest; with it the next older ones, which come below.
async function load(page, before = null) {
  const mine = (page.asked += 1);
  page.older.disabled = true;
  page.state.loading("Looking into the log…");
  try {
    const query = queryOf({ ...page.choice, limit: LIMIT, before: before ?? "" });
    const { data } = await page.api.call("GET", `log?${query}`);
    if (mine === page.asked) take(page, data, before !== null);
  } catch (error) {
    if (mine === page.asked) page.state.trouble(error);
  } finally {
    page.older.disabled = false;
  }
}

function take(page, { rows, next }, isMore) {
  page.state.clear();
  if (!isMore) page.rows.clear();
  for (const row of rows) page.rows.set(row.id, row);
  const drawn = rows.map((row) => logRow(row, page.config.canAdmin));
  if (isMore) page.body.append(...drawn);
  else page.body.replaceChildren(...drawn);
  page.next = next;
  page.older.hidden = next === null;
  page.table.hidden = page.rows.size === 0;
  const none = page.choice.search
    ? `Nothing in the log has “${page.choice.search}” in it.`
    : "Nothing was changed yet.";
  page.count.textContent = page.rows.size === 0 ? none : next === null && isMore ? "That is all there is." : "";
}

function logRow(row, canAdmin) {
  const rows = differences(row.before, row.after);
  const isUndone = row.undone_by !== null && row.undone_by !== undefined;
  const details =
    rows.length === 0
      ? ""
      : h("details", { class: "mt-1" }, h("summary", { class: "lab-small" }, "Before and after"), changeTable(rows));
  const button =
    canAdmin && row.can_undo && !isUndone
      ? h(
          "button",
          {
            type: "button",
            class: "btn btn-sm btn-outline-contrast",
            "data-undo": row.id,
            "aria-label": `Undo: ${row.sentence}`,
          },
          "Undo…",
        )
      : "";
  const undone = isUndone
    ? h("span", { class: "badge text-bg-secondary ms-1", title: `by the change ${row.undone_by}` }, "undone")
    : "";
  const refused = row.what === "refused" ? h("span", { class: "badge text-bg-warning ms-1" }, "refused") : "";
  return h(
    "tr",
    { role: "row", class: isUndone ? "lab-undone" : null },
    h("td", { role: "cell" }, agoTime(row.at)),
    h("td", { role: "cell", class: "text-break" }, row.by),
    h("td", { role: "cell", class: "text-break" }, row.sentence, undone, refused, details),
    h("td", { role: "cell", class: "text-end" }, button),
  );
}

async function undo(page, row) {
  const rows = differences(row.after, row.before);
  const isSure = await confirmDialog({
    title: "Undo this change?",
    text: `“${row.sentence}” (${row.by}). ${consequence(row)}`,
    label: "Undo it",
    body: rows.length ? changeTable(rows, ["Now", "After the undo"], "What the undo does") : undefined,
  });
  if (!isSure) return;
  page.state.forget();
  try {
    await page.api.call("POST", `log/${row.id}/undo`);
    await load(page);
    toast(`Undone: ${row.sentence}`);
    page.body.querySelector("button, summary")?.focus();
  } catch (error) {
    page.state.refused(error);
  }
}

function consequence({ what, before, after }) {
  if (before === null || before === undefined)
    return what === "grant" ? "The grant is removed again." : "It is taken back.";
  if (after === null || after === undefined)
    return what === "grant" ? "The grant comes back as it was." : "It comes back as it was.";
  return "What was before comes back:";
}

start(document.getElementById("admin"));
