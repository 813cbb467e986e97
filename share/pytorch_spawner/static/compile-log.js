// The compile log: what the warm-up compiled, what torch said about it, and how to see the same of one's
// own model. Everything is in the journal already, so nothing is fetched. Drawn while it is open only.

import { h, renew } from "./dom.js";
import { isQueueing, warmupProgress } from "./journal.js";
import { compileMode, plural, seconds } from "./said.js";

const OWN = [
  "import torch",
  "torch._logging.set_logs(graph_breaks=True, recompiles=True)",
  "model = torch.compile(model)  # then run one step",
].join("\n");

// Returns {button, node, draw(state)}: the button opens and closes the node.
export function compileLog() {
  const button = h("button", { type: "button", class: "btn btn-outline-contrast btn-sm", "aria-expanded": "false" }, "Compile log");
  const copy = h("button", { type: "button", class: "btn btn-outline-contrast btn-sm" }, "Copy log");
  const said = h("span", { class: "lab-quiet lab-small", role: "status" });
  // Beside the body: what is drawn anew every second would take the box away.
  const box = h("div", { class: "card-body", hidden: true });
  const body = h("div", { class: "card-body" });
  const head = h("div", { class: "card-header" }, h("h2", { class: "h6 mb-0", tabindex: "-1" }, "Compile log"), h("span", {}, said, " ", copy));
  const node = h("section", { class: "card lab-card lab-compile-log", "aria-label": "Compile log", hidden: true }, head, box, body);
  const log = { button, node, state: null, box };
  log.draw = (state) => {
    log.state = state;
    button.hidden = node.hidden && isBare(state) && (isQueueing(state) || Boolean(state.end));
    if (!node.hidden) renew(body, content(state));
  };
  button.addEventListener("click", () => {
    node.hidden = !node.hidden;
    button.setAttribute("aria-expanded", String(!node.hidden));
    said.textContent = "";
    fill(box);
    if (node.hidden) return;
    log.draw(log.state);
    head.querySelector("h2").focus();
  });
  copy.addEventListener("click", () => copyText(log, said));
  return log;
}

function fill(box, ...nodes) {
  box.replaceChildren(...nodes);
  box.hidden = !nodes.length;
}

async function copyText({ state, box }, said) {
  const text = asText(state);
  try {
    await navigator.clipboard.writeText(text);
    fill(box);
    said.textContent = "Copied.";
  } catch {
    // Browsers give the clipboard to https and localhost only.
    const area = h("textarea", { class: "form-control lab-report", rows: "12", readonly: true, "aria-label": "Compile log as text" });
    area.value = text;
    fill(box, area);
    area.focus();
    area.select();
    said.textContent = "Press Ctrl+C to copy.";
  }
}

function content(state) {
  const { targets } = warmupProgress(state);
  const check = checkOf(state);
  return [
    isBare(state) ? h("p", { class: "lab-quiet" }, whyNothing(state)) : null,
    check ? entry("compile", check) : null,
    ...targets.map((target) => entry(target.id, ofTarget(target))),
    h("h3", { class: "h6 mt-3" }, "Your own model"),
    h("p", { class: "mb-1" }, "This log is about the lab's small test networks. To see why a model of yours is slow or not compiled, put this before it in your notebook:"),
    h("pre", { class: "lab-code", tabindex: "0" }, OWN),
    h("p", { class: "lab-quiet lab-small mb-0" }, "A graph break is a place where PyTorch leaves the compiled code: often print(), .item(), or a library it cannot look into. A recompilation is a new shape or type of input; keep batches the same size."),
  ].filter(Boolean);
}

function isBare(state) {
  return !checkOf(state) && !warmupProgress(state).targets.length;
}

function whyNothing({ end, warmup }) {
  if (warmup?.done) return "Nothing was compiled ahead of you in this server.";
  return end ? "Nothing was compiled before this server ended." : "Nothing was compiled yet. It begins when the checks are done.";
}

// {isBad, title, rows: [text], blocks: [{title, text}]}: what is known of one thing that was compiled.
function checkOf({ checks }) {
  const check = checks.get("compile");
  if (!check || check.phase !== "done" || !check.compile) return null;
  const { counts, reasons, error } = check.compile;
  return {
    isBad: check.level === "fail",
    title: `The check: ${check.sentence || "compile"}`,
    rows: countRows(counts),
    blocks: blocks(reasons, [], error),
  };
}

function ofTarget(target) {
  const name = [target.model, compileMode(target.mode)].filter(Boolean).join(" ");
  const { log } = target;
  const rows = [];
  if (target.phase === "done") rows.push(`first step ${seconds(target.cold)}, the same again from the cache ${seconds(target.warm)}`);
  if (target.message) rows.push(target.message);
  if (log) {
    rows.push(...countRows(log.first));
    if (log.second && log.second.miss) rows.push(`the second time ${plural(log.second.miss, "part")} had to be compiled anew: the cache did not keep it`);
    if (log.recompiles) rows.push(`compiled anew for other inputs: ${log.recompiles}`);
  } else if (target.phase === "done") rows.push("No further details were recorded.");
  return {
    isBad: target.phase === "failed",
    title: `${name}: ${phaseWords(target, log)}`,
    rows,
    blocks: log ? blocks(log.reasons, log.lines, log.error) : [],
  };
}

function phaseWords(target, log) {
  if (target.phase === "failed") return "did not compile";
  if (target.phase === "skipped") return "skipped";
  if (target.phase !== "done") return target.phase === "running" ? "compiling…" : "next";
  const parts = [target.fromCache ? "from the warm cache" : `compiled in ${seconds(target.cold)}`];
  if (log?.first?.breaks) parts.push(plural(log.first.breaks, "graph break"));
  return parts.join(", ");
}

function countRows(counts) {
  if (!counts) return [];
  const { graphs, frames, framesOk, hit, miss } = counts;
  const rows = [];
  if (graphs !== null) rows.push(`${plural(graphs, "compiled graph")}${counts.breaks === null ? "" : `, ${plural(counts.breaks, "graph break")}`}`);
  if (frames !== null && framesOk !== null && frames > framesOk) rows.push(`${plural(frames - framesOk, "function")} of ${frames} ran uncompiled`);
  // Before PyTorch 2.6 there is nothing that counts.
  if (hit !== null && miss !== null) rows.push(hit + miss ? `cache: ${plural(hit, "hit")}, ${miss} ${miss === 1 ? "miss" : "misses"}` : "cache: this PyTorch does not count hits");
  return rows;
}

function blocks(reasons, lines, error) {
  return [
    ["What went wrong", error],
    ["Why it was split or not compiled", reasons.join("\n\n")],
    ["What PyTorch said", lines.join("\n")],
  ].filter(([, text]) => text).map(([title, text]) => ({ title, text }));
}

function entry(key, { isBad, title, rows, blocks: shown }) {
  return h(
    "details",
    { class: `lab-check ${isBad ? "lab-fail" : "lab-ok"}`, "data-key": `compile-${key}`, open: isBad },
    h("summary", {}, title),
    ...rows.map((row) => h("p", { class: "mb-1" }, row)),
    ...shown.flatMap((one) => [h("p", { class: "mb-1 lab-quiet lab-small" }, `${one.title}:`), h("pre", { class: "lab-code", tabindex: "0" }, one.text)]),
  );
}

function asText(state) {
  const check = checkOf(state);
  const { targets } = warmupProgress(state);
  const all = [...(check ? [check] : []), ...targets.map(ofTarget)];
  const said = all.map(({ title, rows, blocks: shown }) =>
    [title, ...rows.map((row) => `  ${row}`), ...shown.map((one) => `  ${one.title}:\n${one.text.replace(/^/gm, "    ")}`)].join("\n"),
  );
  return ["Compile log", ...(said.length ? said : [whyNothing(state)])].join("\n\n");
}
