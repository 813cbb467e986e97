// "Usage": GPU-hours held and busy, by user, course or device, by day.

import { h, setText } from "../dom.js";
import { connectApi, proof } from "./api.js";
import { barChart } from "./charts.js";
import { fromAddress, loader, queryOf, stateBox, toAddress } from "./list-page.js";
import { follow } from "./live.js";

const DAYS = 14;
const PRESETS = [7, 30, 90];
const BY = { user: "User", course: "Course", gpu: "Device" };
const UNMEASURED = "not measured";

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const defaults = { ...lastDays(DAYS), by: "user" };
  const page = { config, defaults, choice: fromAddress(defaults), sort: { key: "held_h", down: true }, data: null };
  page.state = stateBox(() => page.load());
  page.out = h("div", {});
  page.load = loader({
    api: connectApi(config),
    state: { ...page.state, trouble: (error) => trouble(page, error) },
    path: () => `usage?${queryOf(page.choice)}`,
    draw: (data) => take(page, data),
    saying: "Adding up the hours…",
  });
  root.append(heading(page), tools(page), page.state.node, page.out);
  follow(config, {});
  page.load();
}

function lastDays(count) {
  const day = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);
  return { first: day(count - 1), last: day(0) };
}

function heading(page) {
  page.csv = h("a", { class: "btn btn-sm btn-outline-contrast", download: "usage.csv" }, "Export CSV");
  return h(
    "div",
    { class: "lab-heading" },
    h("h1", { class: "h3" }, "Usage"),
    h("div", { class: "lab-heading-actions" }, page.csv),
  );
}

// ---- choosing -----------------------------------------------------------------------------------

function tools(page) {
  page.fields = { first: dateField("first", "First day"), last: dateField("last", "Last day") };
  for (const { input } of Object.values(page.fields))
    input.addEventListener("change", () => choose(page, readDates(page)));
  const presets = PRESETS.map((count) => {
    const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, `Last ${count} days`);
    button.addEventListener("click", () => choose(page, lastDays(count)));
    return button;
  });
  const radios = Object.entries(BY).map(([value, label]) => {
    const input = h("input", { type: "radio", class: "form-check-input", name: "by", id: `by-${value}`, value });
    input.checked = value === page.choice.by;
    input.addEventListener("change", () => choose(page, { by: value }));
    const text = h("label", { class: "form-check-label", for: `by-${value}` }, label);
    return h("div", { class: "form-check form-check-inline" }, input, text);
  });
  const node = h(
    "div",
    { class: "lab-tools" },
    ...Object.values(page.fields).map((field) => field.node),
    h("div", { class: "lab-heading-actions", role: "group", "aria-label": "Quick choice of days" }, ...presets),
    h("fieldset", {}, h("legend", {}, "Hours by"), ...radios),
  );
  showChoice(page);
  return node;
}

function dateField(name, label) {
  const input = h("input", {
    type: "date",
    class: "form-control",
    id: name,
    name,
    "aria-describedby": `${name}-fault`,
  });
  const fault = h("div", { id: `${name}-fault`, class: "invalid-feedback" });
  const node = h("div", { class: "lab-dated" }, h("label", { for: name, class: "form-label" }, label), input, fault);
  const tell = (message) => {
    input.classList.toggle("is-invalid", message !== "");
    input.setAttribute("aria-invalid", String(message !== ""));
    fault.textContent = message;
  };
  return { node, input, tell };
}

// A date that is half typed is none yet.
function readDates({ fields, choice }) {
  return { first: fields.first.input.value || choice.first, last: fields.last.input.value || choice.last };
}

function choose(page, change) {
  Object.assign(page.choice, change);
  toAddress(page.choice, page.defaults);
  showChoice(page);
  page.load();
}

function showChoice({ fields, choice, csv, config }) {
  for (const [name, { input, tell }] of Object.entries(fields)) {
    if (input.value !== choice[name]) input.value = choice[name];
    tell("");
  }
  csv.href = `${config.apiUrl}usage?${queryOf({ ...choice, format: "csv", _xsrf: proof() })}`;
}

function trouble(page, error) {
  const named = (error.problems ?? []).filter(({ field }) => page.fields[field]);
  page.out.replaceChildren();
  for (const { field, message } of named) page.fields[field].tell(message);
  if (named.length) page.state.clear();
  else page.state.trouble(error);
}

// ---- showing ------------------------------------------------------------------------------------

function take(page, data) {
  page.data = data;
  if (data.rows.length === 0) {
    page.out.replaceChildren(
      h("p", {}, "Nobody held a GPU in these days."),
      data.note ? h("p", { class: "lab-quiet" }, data.note) : "",
    );
    return;
  }
  const chart = h("div", { class: "lab-chart mb-3" });
  page.table = h("div", { class: "lab-scroll", tabindex: "0", role: "region", "aria-label": "Hours" });
  const note = h("p", { class: "lab-quiet lab-small" });
  setText(note, data.note ?? "");
  page.out.replaceChildren(h("p", { class: "fs-5 mb-2" }, totalWords(data)), note, chart, page.table);
  drawTable(page);
  barChart(chart, perDay(data));
}

function totalWords({ total, days }) {
  const busy = total.busy_h === null ? `busy hours ${UNMEASURED}` : `busy ${figure(total.busy_h)} h${ofHeld(total)}`;
  const range = days.length === 1 ? "on one day" : `in ${days.length} days`;
  return `Held ${figure(total.held_h)} h, ${busy}, ${range} (UTC).`;
}

function ofHeld(row) {
  const part = share(row);
  return part === null ? "" : ` (${part} % of it)`;
}

function share({ held_h, busy_h }) {
  // Of a few minutes a share says nothing: busy time is booked a minute later than it was.
  return busy_h === null || held_h < 0.1 ? null : Math.round((100 * busy_h) / held_h);
}

function figure(value) {
  return value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

// The sums are of all, also of those beyond the rows that are shown.
function perDay({ days, sums }) {
  return { days, held: sums.map(({ held_h }) => held_h), busy: sums.map(({ busy_h }) => busy_h) };
}

const COLUMNS = [
  { key: "label", name: (by) => BY[by], value: (row) => row.label },
  { key: "held_h", name: () => "Held, hours", value: (row) => row.held_h, words: (row) => figure(row.held_h) },
  {
    key: "busy_h",
    name: () => "Busy, hours",
    value: (row) => row.busy_h,
    words: (row) => (row.busy_h === null ? UNMEASURED : figure(row.busy_h)),
  },
  {
    key: "share",
    name: () => "Busy of held",
    value: share,
    words: (row) => (share(row) === null ? "–" : `${share(row)} %`),
  },
];

function drawTable(page) {
  const { data, sort } = page;
  const heads = COLUMNS.map((column) => sortHead(page, column));
  const rows = sorted(data.rows, sort).map((row) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "fw-normal text-break" }, row.label),
      ...COLUMNS.slice(1).map(({ words }) => {
        const said = words(row);
        return h("td", { class: said === UNMEASURED || said === "–" ? "lab-number lab-quiet" : "lab-number" }, said);
      }),
    ),
  );
  page.table.replaceChildren(
    h(
      "table",
      { class: "table table-sm lab-usage" },
      h("caption", { class: "visually-hidden" }, `GPU-hours by ${BY[data.by].toLowerCase()}`),
      h("thead", {}, h("tr", {}, ...heads)),
      h("tbody", {}, ...rows),
    ),
  );
}

function sortHead(page, column) {
  const { sort, data } = page;
  const isNow = sort.key === column.key;
  const mark = h("span", { "aria-hidden": "true" }, isNow ? (sort.down ? " ▾" : " ▴") : "");
  const button = h("button", { type: "button", class: "btn btn-link lab-sort" }, column.name(data.by), mark);
  button.addEventListener("click", () => {
    page.sort = { key: column.key, down: isNow ? !sort.down : column.key !== "label" };
    drawTable(page);
    page.table.querySelector(`[data-column="${column.key}"] button`).focus();
  });
  const direction = isNow ? (sort.down ? "descending" : "ascending") : null;
  const look = column.key === "label" ? null : "lab-number";
  return h("th", { scope: "col", "aria-sort": direction, class: look, "data-column": column.key }, button);
}

// What nobody measured stays at the end, whichever way it is sorted.
function sorted(rows, { key, down }) {
  const { value } = COLUMNS.find((column) => column.key === key);
  const sign = down ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  });
}

start(document.getElementById("admin"));
