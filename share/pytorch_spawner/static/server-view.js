// Draws a journal's state. Every text goes in as a text node; nothing is ever parsed as HTML.
// A part is redrawn only when what it shows changed, so that focus, selection and folds stay.

import { checksCard, courseCard, gpuCard, warmupCard } from "./cards.js";
import { h, renew, setText } from "./dom.js";
import { isQueueing, nextStage, warmupProgress } from "./journal.js";
import { clock, exact, judge, lasting, seconds, waiting, words } from "./said.js";

// Build the fixed parts once; returns what draw() fills.
export function mount(root, actions) {
  const parts = {
    sentence: h("h1", { class: "lab-sentence h3", id: "lab-sentence" }),
    detail: h("p", { class: "lab-detail" }),
    icon: h("span", { class: "lab-icon", "aria-hidden": "true" }),
    since: h("span"),
    expected: h("span"),
    primary: h("div", { class: "lab-primary" }),
    choices: h("div", { class: "lab-choices" }),
    endingSaid: h("span", { role: "status" }),
    endingLeft: h("span"),
    notice: h("div", { class: "lab-notice", role: "status" }),
    stages: h("ol", { class: "lab-stages", "aria-label": "Stages of the start" }),
    log: h("div", {}),
    cards: h("div", { class: "lab-cards" }),
    gpu: h("section", { class: "card lab-card lab-gpu-card", "aria-label": "GPU" }),
    course: h("section", { class: "card lab-card lab-course-card", "aria-label": "Course notebooks", hidden: true }),
    checks: h("section", { class: "card lab-card lab-checks-card", "aria-label": "Checks" }),
    warmup: h("section", { class: "card lab-card", "aria-label": "Warm-up" }),
    actions: h("div", { class: "lab-actions" }, ...actions),
  };
  // Outside of what is read out on change: these tick.
  parts.wait = h("p", { class: "lab-detail lab-quiet lab-small" }, parts.since, " · ", parts.expected);
  parts.ending = h("div", { class: "alert alert-warning lab-ending" }, parts.endingSaid, " ", parts.endingLeft);
  parts.verdict = h(
    "section",
    { class: "card lab-verdict", "aria-labelledby": "lab-sentence" },
    parts.icon,
    h("div", { class: "lab-words" }, h("div", { "aria-live": "polite" }, parts.sentence, parts.detail), parts.wait),
    parts.primary,
    parts.choices,
  );
  parts.cards.append(parts.gpu, parts.course, parts.checks, parts.warmup);
  root.replaceChildren(parts.verdict, parts.ending, parts.notice, parts.stages, parts.log, parts.cards, parts.actions);
  root.classList.add("lab-server");
  return parts;
}

// To the choice before a start; next: where the person wanted to go when they came, which the hub keeps.
export function startAnew({ spawnUrl, next }, label) {
  return { label, href: next ? `${spawnUrl}?${new URLSearchParams({ next })}` : spawnUrl };
}

// The hub takes the options of a start from its address, too.
// course: of the start that failed, which is kept; also "", since a start that names none may get the
// person's only one. Where nobody knows it, the hub decides anew.
export function withoutGpu({ spawnUrl, next }, course) {
  const isKnown = typeof course === "string";
  const choice = new URLSearchParams({ share: "none", ...(isKnown && { course }), ...(next && { next }) });
  return { label: "Start without a GPU", href: `${spawnUrl}?${choice}`, isSecond: true };
}

// state: of journal.js. look: {config, now, standing, primary: [{label, href or null, act, isSecond}],
// and where there is no journal: verdict and isEmpty}
export function draw(parts, state, look) {
  drawVerdict(parts, state, look);
  drawWait(parts, state, look.now);
  drawEnding(parts, state, look.now);
  parts.cards.hidden = parts.actions.hidden = look.isEmpty === true;
  renew(parts.stages, stageItems(state, look.now));
  renew(parts.log, failureLog(state));
  renew(parts.gpu, gpuCard(state, look.now, look.standing));
  parts.course.hidden = !state.course && !state.courseNote;
  renew(parts.course, courseCard(state));
  renew(parts.checks, checksCard(state, look.config));
  renew(parts.warmup, warmupCard(state));
}

export function drawNotice(parts, ...content) {
  renew(parts.notice, content.length ? [h("div", { class: "alert alert-warning" }, ...content)] : []);
}

function drawVerdict(parts, state, look) {
  const verdict = look.verdict ?? judge(state, words(look.config));
  const icons = { wait: "", ok: "✓", warn: "!", bad: "✕", off: "■" };
  parts.verdict.dataset.tone = verdict.tone;
  parts.icon.textContent = icons[verdict.tone];
  setText(parts.sentence, verdict.sentence);
  setText(parts.detail, verdict.detail);
  renew(parts.primary, look.primary.map(primaryButton));
}

function primaryButton({ label, href, act, isSecond }) {
  const style = `btn btn-lg ${isSecond ? "btn-outline-contrast" : "btn-primary"}`;
  if (href) return h("a", { class: style, href, role: "button" }, label);
  const button = h("button", { class: style, type: "button", disabled: !act }, label);
  if (act) button.addEventListener("click", act);
  return button;
}

function drawWait(parts, state, now) {
  parts.wait.hidden = !isQueueing(state);
  if (parts.wait.hidden) return;
  const { since, expected } = waiting(state, now);
  setText(parts.since, since, exact(state.queue.since));
  setText(parts.expected, expected, state.queue.expectedAt === null ? "" : exact(state.queue.expectedAt));
}

function drawEnding(parts, { ending, end }, now) {
  parts.ending.hidden = !ending || Boolean(end);
  if (parts.ending.hidden) return;
  const { message, until } = ending;
  setText(parts.endingSaid, message || "Your GPU time ends soon. Save your work.");
  const left = until === null ? "" : until <= now ? "The time is over." : `${lasting(until - now)} left.`;
  setText(parts.endingLeft, left, until === null ? "" : exact(until));
}

// ---- stages -------------------------------------------------------------------------------------

function stageItems(state, now) {
  const items = state.stages.map(({ label, seconds: took, at, stage }) => {
    const name = stage === "gpu" && state.gpus.length ? "GPU found" : stage === "gpu" ? "No GPU" : label;
    return stageItem("done", name, seconds(took), exact(at));
  });
  const next = nextStage(state);
  if (next && state.seq) {
    const since = next.stage === "queue" ? state.queue.since : (state.last ?? state.began);
    items.push(stageItem("now", next.label, seconds(Math.max(0, Math.floor(now - since)) || 0.01), ""));
  }
  const { targets, isOver, isRunning } = warmupProgress(state);
  if (isRunning && state.warmup && !state.end) {
    items.push(stageItem("now", "Warm-up", seconds(Math.max(0, Math.floor(now - state.warmup.at)) || 0.01), ""));
  } else if (isOver && targets.length) {
    const took = state.warmup.done?.seconds ?? null;
    const didAll = targets.every(({ phase }) => phase === "done");
    const kind = targets.every(({ phase }) => phase === "skipped") ? "off" : didAll ? "done" : "warn";
    items.push(stageItem(kind, "Warm-up", took === null ? "" : seconds(took), ""));
  }
  if (state.end) {
    const word = { failed: "Failed", stopped: "Stopped", cancelled: "Cancelled" }[state.end.kind];
    items.push(stageItem(state.end.kind === "failed" ? "bad" : "off", word, clock(state.end.at ?? now), exact(state.end.at ?? now)));
  }
  return items;
}

function stageItem(kind, label, time, title) {
  const said = { done: "done", now: "under way", bad: "failed", warn: "incomplete", off: "" }[kind];
  const mark = { done: "●", now: "◐", bad: "✕", warn: "!", off: "■" }[kind];
  return h(
    "li",
    { class: `lab-stage lab-stage-${kind}`, title: title || null },
    h("span", { class: "lab-mark", "aria-hidden": "true" }, mark),
    h("span", {}, label),
    time ? h("span", { class: "lab-time" }, time) : null,
    said ? h("span", { class: "visually-hidden" }, said) : null,
  );
}

function failureLog(state) {
  if (!state.end?.logTail.length) return [];
  const count = state.end.logTail.length;
  return [
    h(
      "details",
      { class: "lab-log", "data-key": "log" },
      h("summary", {}, `Last ${count === 1 ? "line" : `${count} lines`} of the container's log`),
      h("pre", { tabindex: "0" }, state.end.logTail.join("\n")),
    ),
  ];
}
