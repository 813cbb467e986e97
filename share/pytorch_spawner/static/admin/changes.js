// Two states of one thing, before and after a change, as rows of what differs.

import { h } from "../dom.js";

const NAMES = {
  id: "id",
  to: "given to",
  subject: "name",
  gpus: "pinned GPUs",
  weekly_gpu_hours: "GPU-hours a week",
  max_lease_s: "longest lease",
  valid_from: "valid from",
  valid_until: "valid until",
  drained: "out of service",
  promoted_at: "given to starts since",
};
const DATES = ["valid_from", "valid_until", "since", "until", "at", "promoted_at"];
const UNSET = "not set";

// [{key, name, before, after}] of the keys that differ, in words.
export function differences(before, after) {
  const one = asObject(before);
  const other = asObject(after);
  const keys = [...new Set([...Object.keys(one), ...Object.keys(other)])].filter((key) => key !== "etag");
  return keys
    .map((key) => ({
      key,
      name: NAMES[key] ?? key.replaceAll("_", " "),
      before: valueWords(key, one[key]),
      after: valueWords(key, other[key]),
    }))
    .filter(({ key }) => JSON.stringify(one[key] ?? "") !== JSON.stringify(other[key] ?? ""));
}

function asObject(value) {
  if (value === null || value === undefined) return {};
  return typeof value === "object" && !Array.isArray(value) ? value : { value };
}

export function valueWords(key, value) {
  if (value === null || value === undefined || value === "") return UNSET;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (key === "max_lease_s") return value % 360 === 0 ? `${value / 3600} h` : `${Math.round(value / 6) / 10} min`;
  if (DATES.includes(key)) {
    const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
    return Number.isNaN(date.getTime()) ? String(value) : date.toLocaleString();
  }
  if (Array.isArray(value)) return value.map((one) => valueWords("", one)).join(", ") || UNSET;
  if (typeof value === "object") {
    return Object.entries(value)
      .map(([name, one]) => `${name.replaceAll("_", " ")}: ${valueWords(name, one)}`)
      .join("; ");
  }
  return String(value);
}

// The rows as a table; columns: what the two states are called.
export function changeTable(rows, [first, second] = ["Before", "After"], caption = "What changed") {
  return h(
    "table",
    { class: "table table-sm lab-small mb-2" },
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, ...["What", first, second].map((name) => h("th", { scope: "col" }, name)))),
    h(
      "tbody",
      {},
      ...rows.map((row) =>
        h(
          "tr",
          {},
          h("th", { scope: "row", class: "fw-normal text-break" }, row.name),
          h("td", { class: "text-break" }, quietly(row.before)),
          h("td", { class: "text-break" }, quietly(row.after)),
        ),
      ),
    ),
  );
}

function quietly(words) {
  return words === UNSET ? h("span", { class: "lab-quiet" }, words) : words;
}
