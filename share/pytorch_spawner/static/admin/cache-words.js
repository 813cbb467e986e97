// Warm caches in words: seconds, sizes, how it is with one.

import { h } from "../dom.js";
import { exact } from "../said.js";
import { agoTime } from "./list-page.js";

export const RUNNING = ["queued", "building", "checking"];

const BADGES = {
  current: ["text-bg-success", "given to starts"],
  kept: ["lab-badge-free", "kept"],
  failed: ["text-bg-danger", "failed"],
  gone: ["text-bg-secondary", "gone"],
};
// What a build does, in its order; the first two are states of the ledger.
const STEPS = [
  ["queued", "waits for its turn"],
  ["building", "compiles in a container of its own"],
  ["checking", "is proved in a second, fresh container"],
];

export function isRunning({ state }) {
  return RUNNING.includes(state);
}

export function seconds(value) {
  return value === null || value === undefined ? "–" : `${value.toFixed(1)} s`;
}

export function megabytes(bytes) {
  return bytes ? `${(bytes / 1e6).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 })} MB` : "–";
}

// "example for NVIDIA H100, driver 580", and the course where it is for one.
export function nameOf({ suite, where, course }) {
  return `${suite.name} for ${where}${course ? `, course ${course}` : ""}`;
}

export function badge({ standing }) {
  const [style, text] = BADGES[standing] ?? ["text-bg-secondary", standing];
  return h("span", { class: `badge ${style}` }, text);
}

// "41.0 s → 3.2 s" with what it means for those who do not see the arrow.
export function firstSteps({ cold_s: cold, warm_s: warm }) {
  if (cold === null || warm === null) return h("span", { class: "lab-quiet" }, "–");
  return h(
    "span",
    { class: "text-nowrap" },
    h("span", { class: "visually-hidden" }, "cold "),
    seconds(cold),
    h("span", { "aria-hidden": "true" }, " → "),
    h("span", { class: "visually-hidden" }, ", warm "),
    h("strong", {}, seconds(warm)),
  );
}

export function used({ used_at: at }) {
  return at === null ? h("span", { class: "lab-quiet text-nowrap" }, "never") : agoTime(at);
}

export function stepList({ state }) {
  const at = STEPS.findIndex(([name]) => name === state);
  return h(
    "ol",
    { class: "lab-cache-steps" },
    ...STEPS.map(([name, text], place) =>
      h(
        "li",
        { "aria-current": name === state ? "step" : null, class: place < at ? "lab-quiet" : null },
        place < at ? `${text}: done` : text,
      ),
    ),
  );
}

export function targetTable(targets, caption) {
  if (targets.length === 0) return null;
  const number = (text) => h("td", { class: "lab-number" }, text);
  return h(
    "table",
    { class: "table table-sm lab-small mb-2 lab-cache-targets" },
    h("caption", { class: "visually-hidden" }, caption),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Target"),
        ...["Size", "Cold", "Warm", "Hits", "Misses"].map((name) => h("th", { scope: "col", class: "lab-number" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      ...targets.map((one) =>
        h(
          "tr",
          {},
          h("th", { scope: "row", class: "fw-normal text-break" }, one.name),
          number(one.size === null ? "–" : String(one.size)),
          number(seconds(one.cold_s)),
          number(seconds(one.warm_s)),
          number(String(one.hits)),
          number(String(one.misses)),
        ),
      ),
    ),
  );
}

// Its facts, its measurements and the end of its log, which is whatever the suite's code wrote;
// read: what the service said of it alone, null before it did.
export function details(row, read) {
  if (!read) return [h("p", { class: "lab-quiet lab-small mb-0", role: "status" }, "Reading…")];
  const facts = [
    ["Asked for by", `${row.by}, ${exact(row.asked_at)}`],
    ["torch, Triton", row.torch ? `${row.torch}, ${row.triton || "none"}` : ""],
    ["Files", row.files ? `${row.files} in ${megabytes(row.size_bytes)}` : ""],
    ["Given to starts since", row.promoted_at ? exact(row.promoted_at) : ""],
    ["Image id", row.key?.image_id ?? ""],
  ].filter(([, text]) => text);
  return [
    h("dl", { class: "lab-facts-list lab-small" }, ...facts.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
    isRunning(row) ? null : targetTable(row.targets, `What ${row.suite.name} took`),
    read.log
      ? h(
          "pre",
          { class: "lab-cache-log", tabindex: "0", role: "region", "aria-label": `Log of ${nameOf(row)}` },
          read.log,
        )
      : h("p", { class: "lab-quiet lab-small mb-0" }, "There is no log."),
  ].filter(Boolean);
}
