// A table of warm caches, and a card for a build that is not over.

import { h } from "../dom.js";
import { badge, details, firstSteps, megabytes, nameOf, stepList, targetTable, used } from "./cache-words.js";
import { agoTime } from "./list-page.js";

// opened: by the id of each row whose details are open, what was read for them.
export function cacheTable({ rows, caption, opened, config }) {
  const canChange = config.canInstruct;
  const heads = ["For", "Suite", "State", "First steps", "Size", "Hits", "Used", ...(canChange ? ["Actions"] : [])];
  return h(
    "table",
    { class: "table align-top lab-cards-table lab-caches-table", role: "table" },
    h("caption", { class: "visually-hidden" }, caption),
    h(
      "thead",
      { role: "rowgroup" },
      h("tr", { role: "row" }, ...heads.map((name) => h("th", { scope: "col", role: "columnheader" }, name))),
    ),
    h(
      "tbody",
      { role: "rowgroup" },
      ...rows.flatMap((row) => [
        cacheRow(row, opened, canChange, config),
        ...(opened.has(row.id) ? [detailsRow(row, opened.get(row.id), heads.length)] : []),
      ]),
    ),
  );
}

function detailsRow(row, read, columns) {
  const cell = h("td", { role: "cell", colspan: String(columns) }, ...details(row, read));
  return h("tr", { role: "row", class: "lab-cache-details", id: `details-${row.id}` }, cell);
}

function opener(row, opened) {
  const isOpen = opened.has(row.id);
  return h(
    "button",
    {
      type: "button",
      class: "btn btn-link lab-open lab-small",
      "data-do": "open",
      "data-key": row.id,
      "aria-expanded": String(isOpen),
      "aria-controls": isOpen ? `details-${row.id}` : null,
      "aria-label": `Details of ${nameOf(row)} (${row.id})`,
    },
    h("span", { class: "lab-chevron", "aria-hidden": "true" }, isOpen ? "▾" : "▸"),
    "Details",
  );
}

// What every course is given is an admin's to decide.
function mayDecide(row, config) {
  return config.canInstruct && (config.canAdmin || Boolean(row.course));
}

function cacheRow(row, opened, canChange, config) {
  const cell = (name, ...children) => h("td", { role: "cell", "data-column": name, class: "text-break" }, ...children);
  const message = row.standing === "failed" || row.standing === "gone" ? h("span", { class: "lab-sub" }, row.message) : "";
  return h(
    "tr",
    { role: "row" },
    h(
      "th",
      { scope: "row", role: "rowheader", class: "text-break fw-normal" },
      h("strong", {}, row.where),
      h("span", { class: "lab-sub" }, row.image),
      h("span", { class: "lab-sub" }, row.course ? `course ${row.course}` : "all courses"),
    ),
    cell("Suite", h("div", {}, row.suite.name, h("span", { class: "lab-sub" }, row.id), opener(row, opened))),
    cell("State", h("div", {}, badge(row), message)),
    cell("First steps", firstSteps(row)),
    cell("Size", h("span", { class: "text-nowrap" }, megabytes(row.size_bytes))),
    cell("Hits", row.hits ? String(row.hits) : "–"),
    cell("Used", used(row)),
    canChange ? h("td", { role: "cell", "data-column": "" }, mayDecide(row, config) ? actions(row) : "") : "",
  );
}

function actions(row) {
  const name = `${nameOf(row)} (${row.id})`;
  const make = (action, text, isRisky = false) =>
    h(
      "button",
      {
        type: "button",
        class: `btn btn-sm btn-outline-contrast${isRisky ? " lab-risky" : ""}`,
        "data-do": action,
        "data-key": row.id,
        "aria-label": `${text} ${name}`,
      },
      text,
    );
  const isPublished = row.state === "published";
  return h(
    "div",
    { class: "lab-chips" },
    isPublished && row.promoted_at !== null ? make("rollback", "Roll back") : "",
    isPublished && !row.is_current ? make("promote", "Promote") : "",
    make("again", "Build again…"),
    row.state === "expired" ? "" : make("remove", "Remove…", true),
  );
}

// A build that waits or runs.
export function buildCard(row, opened, config) {
  const title = `build-${row.id}`;
  const name = nameOf(row);
  const stop = h(
    "button",
    {
      type: "button",
      class: "btn btn-sm btn-outline-contrast lab-risky",
      "data-do": "stop",
      "data-key": row.id,
      "aria-label": `Stop… the build of ${name} (${row.id})`,
    },
    "Stop…",
  );
  return h(
    "article",
    { class: "lab-cache-build", "aria-labelledby": title },
    h(
      "div",
      { class: "lab-cache-build-head" },
      h("h3", { class: "h6 mb-0 text-break", id: title }, name),
      mayDecide(row, config) ? stop : "",
    ),
    h("p", { class: "lab-sub mb-2" }, `${row.image} · ${row.id} · asked for by ${row.by}, `, agoTime(row.asked_at)),
    stepList(row),
    row.message ? h("p", { class: "mb-2 text-break" }, row.message) : "",
    targetTable(row.targets, `What ${row.suite.name} took so far`),
    row.state === "queued" ? "" : opener(row, opened),
    opened.has(row.id) ? h("div", { id: `details-${row.id}` }, ...details(row, opened.get(row.id))) : "",
  );
}
