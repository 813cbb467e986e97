// "Queue": who waits for what, why and since when; raise, lower, remove.

import { h } from "../dom.js";
import { clockOrDay, exact } from "../said.js";
import { connectApi } from "./api.js";
import { amount } from "./grant-words.js";
import {
  agoTime,
  atMostEvery,
  fromAddress,
  guarded,
  loader,
  pager,
  queryOf,
  renewNamed,
  searchBox,
  stateBox,
  toAddress,
} from "./list-page.js";
import { follow } from "./live.js";
import { openBoost } from "./queue-boost.js";
import { confirmDialog, debounce, toast } from "./ui.js";

const DEFAULTS = { search: "", offset: 0 };
const LIMIT = 50;
const STEP = 10;
const MOST = 100;
const RELOAD_MS = 2000;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = { config, api: connectApi(config), choice: fromAddress(DEFAULTS), rows: new Map(), version: null };
  page.state = stateBox(() => page.load());
  page.out = h("div", {});
  page.summary = h("p", { class: "lab-quiet", role: "status" });
  page.pager = pager({ label: "Pages of the queue", limit: LIMIT, go: (offset) => choose(page, { offset }) });
  page.load = loader({
    api: page.api,
    state: page.state,
    path: () => `queue?${queryOf({ ...page.choice, limit: LIMIT })}`,
    draw: (data) => take(page, data),
    saying: "Looking who waits…",
  });
  const searched = debounce((search) => choose(page, { search, offset: 0 }), 300);
  const search = searchBox({
    label: "Search the queue",
    value: page.choice.search,
    placeholder: "A name",
    onInput: searched,
  });
  root.append(
    h("div", { class: "lab-heading" }, h("h1", { class: "h3" }, "Queue")),
    h("div", { class: "lab-tools" }, search.node),
    page.state.node,
    page.summary,
    page.out,
    page.pager.node,
  );
  page.out.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(page, button.dataset.do, page.rows.get(button.dataset.key));
  });
  const reload = atMostEvery(RELOAD_MS, () => page.load({ quiet: true }));
  const news = ({ version }) => {
    // The first word is what the page is about to show anyway.
    if (page.version !== null && version !== page.version) reload();
    page.version = version;
  };
  follow(config, { queue: news, snapshot: ({ queue }) => news(queue) });
  page.load();
}

function choose(page, change) {
  Object.assign(page.choice, change);
  toAddress(page.choice, DEFAULTS);
  page.load();
}

// ---- showing ------------------------------------------------------------------------------------

function take(page, { length, total, waiting }) {
  const offset = Number(page.choice.offset);
  if (waiting.length === 0 && total > 0 && offset > 0)
    return choose(page, { offset: Math.max(0, total - (total % LIMIT || LIMIT)) });
  page.rows = new Map(waiting.map((row) => [keyOf(row), row]));
  page.summary.textContent = summary({ length, total }, page.choice.search);
  renewNamed(page.out, waiting.length ? [table(waiting, page.config.canAdmin)] : []);
  page.pager.show(offset, waiting.length, total);
  return undefined;
}

function summary({ length, total }, search) {
  if (length === 0) return "Nobody waits.";
  if (search && total === 0) return `Nobody of that name waits; ${length} in all.`;
  return `${length === 1 ? "1 start waits" : `${length} starts wait`}, the next to be served first.`;
}

function keyOf({ user, server }) {
  return `${user}/${server}`;
}

function label({ user, server }) {
  return server ? `${user} / ${server}` : user;
}

function table(rows, canAdmin) {
  const heads = [
    "Place",
    "Who",
    "Waits for",
    "Since",
    "Why, as they are told",
    "Expected start",
    "Boost",
    ...(canAdmin ? ["Actions"] : []),
  ];
  return h(
    "table",
    { class: "table align-top lab-cards-table lab-queue-table", role: "table" },
    h("caption", { class: "visually-hidden" }, "Who waits, the next to be served first"),
    h(
      "thead",
      { role: "rowgroup" },
      h("tr", { role: "row" }, ...heads.map((name) => h("th", { scope: "col", role: "columnheader" }, name))),
    ),
    h("tbody", { role: "rowgroup" }, ...rows.map((row) => queueRow(row, canAdmin))),
  );
}

function queueRow(row, canAdmin) {
  const away = row.is_away
    ? h(
        "span",
        { class: "badge text-bg-secondary ms-1", title: "JupyterHub restarted; the place is kept until it asks again" },
        "away",
      )
    : "";
  const cell = (name, ...children) => h("td", { role: "cell", "data-column": name, class: "text-break" }, ...children);
  return h(
    "tr",
    { role: "row" },
    cell("Place", row.place ? `${row.place} of ${row.of}` : "–"),
    h("th", { scope: "row", role: "rowheader", class: "text-break" }, label(row), away),
    cell(
      "Waits for",
      `${amount({ count: row.gpus, share: row.share })}, ${row.pool ? `pool ${row.pool}` : "any pool"}`,
    ),
    cell("Since", agoTime(row.since)),
    cell("Why", row.reason),
    cell("Expected start", expected(row)),
    cell("Boost", row.boost ? signed(row.boost) : h("span", { class: "lab-quiet" }, "0")),
    canAdmin ? h("td", { role: "cell", "data-column": "" }, actions(row)) : "",
  );
}

function expected({ expected_at: at }) {
  const now = Date.now() / 1000;
  if (at === null) return h("span", { class: "lab-quiet" }, "unknown");
  return h(
    "time",
    { datetime: new Date(at * 1000).toISOString(), title: exact(at) },
    at <= now ? "any moment" : clockOrDay(at, now),
  );
}

function signed(boost) {
  return boost > 0 ? `+${boost}` : boost < 0 ? `−${-boost}` : "0";
}

function actions(row) {
  const make = (action, text, name, isOff = false) =>
    h(
      "button",
      {
        type: "button",
        class: `btn btn-sm btn-outline-contrast${action === "remove" ? " lab-risky" : ""}`,
        "data-do": action,
        "data-key": keyOf(row),
        "aria-label": `${text} ${name}`,
        disabled: isOff,
      },
      text,
    );
  const name = label(row);
  return h(
    "div",
    { class: "lab-chips" },
    make("raise", "Raise", `${name} by ${STEP}`, row.boost >= MOST),
    make("lower", "Lower", `${name} by ${STEP}`, row.boost <= -MOST),
    make("set", "Set…", `the boost of ${name}`),
    make("remove", "Remove…", `${name} from the queue`),
  );
}

// ---- acting -------------------------------------------------------------------------------------

function path({ user, server }) {
  return ["queue", user, ...(server ? [server] : [])].map(encodeURIComponent).join("/");
}

function act(page, action, row) {
  if (!row) return undefined;
  if (action === "remove") return remove(page, row);
  if (action === "set")
    return openBoost({ row, name: label(row), most: MOST, save: (boost, etag) => setBoost(page, row, boost, etag) });
  const step = action === "raise" ? STEP : -STEP;
  return guarded(page, keyOf(row), () => addBoost(page, latest(page, row), step), { addsUp: true });
}

// The list may have come anew since the button was pressed.
function latest(page, row) {
  return page.rows.get(keyOf(row)) ?? row;
}

function addBoost(page, row, step) {
  return setBoost(page, row, Math.max(-MOST, Math.min(MOST, row.boost + step)), row.etag);
}

async function setBoost(page, row, boost, etag) {
  const { data } = await page.api.call("PATCH", path(row), { body: { boost }, etag });
  // Pressed again before the list is there anew, it goes on from here.
  const was = row.boost;
  Object.assign(latest(page, row), data.waiting ?? {});
  page.load({ quiet: true });
  toast(`${label(row)}: boost ${signed(boost)} (was: ${signed(was)}).`, {
    undo: data.change ? () => undo(page, data.change) : undefined,
  });
}

async function undo(page, change) {
  await page.api.call("POST", `log/${change}/undo`);
  await page.load({ quiet: true });
}

async function remove(page, row) {
  const isSure = await confirmDialog({
    title: `Remove ${label(row)} from the queue?`,
    text: `The start ends without a GPU, and ${row.user} is told that an admin removed it. They may start again, at the end of the queue.`,
    label: "Remove",
    danger: true,
  });
  if (!isSure) return;
  await guarded(page, `remove ${keyOf(row)}`, async () => {
    await page.api.call("DELETE", path(row), { etag: row.etag });
    await page.load({ quiet: true });
    toast(`${label(row)} was removed from the queue.`);
  });
}

start(document.getElementById("admin"));
