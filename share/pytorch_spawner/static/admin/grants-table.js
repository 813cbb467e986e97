// The matrix of "Who gets what": a row a subject, a column a pool, a chip a grant.
// Clicks are found by data-* names, so a row that is kept as it is never holds an old grant.

import { h } from "../dom.js";
import { exact, lasting, plural } from "../said.js";
import { exactly, gpuName, grantWords, isEditable, origin, phase, place, readable, whom } from "./grant-words.js";

const BUTTON = "btn btn-sm btn-outline-contrast";

export function columnsOf({ pools, rows }) {
  const columns = pools.map(({ name, gpus }) => ({
    key: `pool:${name}`,
    pool: name,
    title: name,
    note: plural(gpus, "GPU"),
  }));
  const named = new Set(rows.flatMap(({ grants }) => grants.map(({ pool }) => pool ?? "")));
  for (const { pool } of columns) named.delete(pool);
  named.delete("");
  // A pool that lost its last GPU keeps its grants; they have to stay visible.
  for (const pool of named) columns.push({ key: `pool:${pool}`, pool, title: pool, note: "no GPU now" });
  columns.push({ key: "any", title: "Any pool", note: "" }, { key: "pinned", title: "Pinned GPUs", note: "" });
  return columns;
}

export function columnOf(grant) {
  if (grant.gpus?.length) return "pinned";
  return grant.pool ? `pool:${grant.pool}` : "any";
}

export function subjectOf(row) {
  return row.kind === "everyone" ? { to: "everyone" } : { to: row.kind, subject: row.name };
}

// Explicit roles: as cards on a small screen the table is no table to the browser, but stays one to a reader.
export function matrix(people, { canAdmin, caption }) {
  const columns = columnsOf(people);
  const heads = columns.map(({ title, note }) =>
    h(
      "th",
      { scope: "col", role: "columnheader" },
      title,
      note ? h("span", { class: "lab-note d-block fw-normal" }, note) : "",
    ),
  );
  const rows = people.rows.map((row) => matrixRow(row, columns, people.gpus, canAdmin));
  return h(
    "table",
    { class: "table align-top lab-matrix", role: "table" },
    h("caption", { class: "visually-hidden" }, caption),
    h(
      "thead",
      { role: "rowgroup" },
      h("tr", { role: "row" }, h("th", { scope: "col", role: "columnheader" }, "Who"), ...heads),
    ),
    h("tbody", { role: "rowgroup" }, ...rows),
  );
}

function matrixRow(row, columns, gpus, canAdmin) {
  const cells = columns.map((column) => {
    const grants = row.grants.filter((grant) => columnOf(grant) === column.key);
    const chips = grants.map((grant) => chip(grant, gpus));
    const canPin = row.kind === "user" && column.key === "pinned";
    const add = canAdmin ? (canPin ? pinButton(row) : addButton(row, column)) : "";
    const isEmpty = grants.length === 0 && !(canAdmin && canPin);
    const content = h(
      "div",
      { class: "lab-cell" },
      chips.length ? h("div", { class: "lab-chips" }, ...chips) : "",
      add,
    );
    return h("td", { role: "cell", "data-column": column.title, class: isEmpty ? "lab-empty" : null }, content);
  });
  return h("tr", { role: "row" }, who(row, gpus, canAdmin), ...cells);
}

function who(row, gpus, canAdmin) {
  const name = row.kind === "everyone" ? "Everyone" : row.name;
  const kind = row.kind === "group" ? h("span", { class: "badge text-bg-secondary ms-1" }, "group") : "";
  const unseen = row.is_known
    ? ""
    : h(
        "span",
        {
          class: "badge text-bg-warning ms-1",
          title: "JupyterHub has not seen this name; the grant counts from the first login",
        },
        "not seen yet",
      );
  const facts = [];
  if (row.kind !== "user" && row.members !== null)
    facts.push(plural(row.members, row.kind === "group" ? "member" : "user"));
  if (row.groups.length) facts.push(`in ${row.groups.join(", ")}`);
  return h(
    "th",
    { scope: "row", role: "rowheader", class: "lab-who" },
    h("span", { class: "lab-name" }, name),
    kind,
    unseen,
    facts.length ? h("div", { class: "lab-note fw-normal" }, facts.join(" · ")) : "",
    ...row.holds.map((one) => held(one, gpus)),
    row.sentences.length ? why(row, gpus) : "",
    canAdmin ? cardAction(row) : "",
  );
}

function held({ gpu, name, server, slot, since }, gpus) {
  const which = gpuName(gpu, gpus);
  const parts = [`holds ${name && name !== gpu ? `${which} (${name})` : which}`];
  if (slot !== null) parts.push(`slot ${slot + 1}`);
  if (server) parts.push(`server ${server}`);
  const lasts = h(
    "time",
    { datetime: new Date(since * 1000).toISOString(), title: exact(since) },
    lasting(Date.now() / 1000 - since),
  );
  return h("div", { class: "lab-note fw-normal lab-holds" }, `${parts.join(", ")}, for `, lasts);
}

function why(row, gpus) {
  return h(
    "details",
    { class: "lab-small fw-normal", "data-key": `why:${row.name}` },
    h("summary", {}, `What ${row.name} gets in all`),
    h("ul", { class: "mb-1 ps-3" }, ...row.sentences.map((one) => h("li", {}, readable(one, gpus)))),
  );
}

// Cards show no empty cells, so they have one button for all of them.
function cardAction(row) {
  const of = { "data-do": "add", "data-kind": row.kind, "data-name": row.name };
  const name = whom(subjectOf(row));
  return h(
    "div",
    { class: "lab-card-only" },
    h(
      "button",
      { type: "button", class: `${BUTTON} mt-1`, "aria-label": `Add a grant… for ${name}`, ...of },
      "Add a grant…",
    ),
  );
}

function pinButton({ kind, name }) {
  const of = { "data-do": "pin", "data-kind": kind, "data-name": name };
  return h(
    "button",
    { type: "button", class: `${BUTTON} lab-pin`, "aria-label": `Pin a GPU… to ${name}`, ...of },
    "Pin a GPU…",
  );
}

function chip(grant, gpus) {
  const pinned = grant.gpus?.length ? `${place(grant, gpus)} · ` : "";
  const words = pinned + grantWords(grant);
  const mark = isEditable(grant) ? "" : ` · from ${grant.source === "config" ? "the configuration" : "the group"}`;
  const state = phase(grant);
  return h(
    "button",
    {
      type: "button",
      class: `btn btn-sm lab-chip${state === "now" ? "" : " lab-chip-off"}${isEditable(grant) ? "" : " lab-chip-fixed"}`,
      "data-do": "edit",
      "data-id": grant.id,
      "aria-label": `${words}${mark}, grant to ${whom(grant)}, ${place(grant, gpus)}`,
      title: [exactly(grant), origin(grant)].filter(Boolean).join(". ") || null,
    },
    words,
    mark ? h("span", { class: "lab-quiet" }, mark) : "",
  );
}

function addButton(row, column) {
  const name = whom(subjectOf(row));
  const where = { any: "on any pool", pinned: "on pinned GPUs" }[column.key] ?? `on pool ${column.pool}`;
  return h(
    "button",
    {
      type: "button",
      class: "btn btn-sm lab-add",
      "data-do": "add",
      "data-kind": row.kind,
      "data-name": row.name,
      "data-column": column.key,
      "aria-label": `Add a grant for ${name} ${where}`,
    },
    "+",
  );
}
