// Draws a journal's state. Every text goes in as a text node; nothing is ever parsed as HTML.
// A part is redrawn only when what it shows changed, so that focus, selection and folds stay.

import {
  ago,
  clock,
  clockOrDay,
  compileMode,
  countChecks,
  exact,
  gib,
  isQueueing,
  judge,
  lasting,
  nextStage,
  sayChecks,
  seconds,
  slotWords,
  waiting,
  warmupProgress,
} from "./journal.js";

const LEVELS = {
  ok: ["✓", "fine"],
  warn: ["!", "note"],
  fail: ["✕", "problem"],
  unknown: ["?", "unknown"],
};
const STALE_S = 60;
const BARS = "▁▂▃▄▅▆▇█";

// h("p", {class: "x"}, "text", node): an element; strings become text nodes.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function words(config) {
  return config.isOwner === false
    ? { Your: `${config.user}'s`, You: config.user, you: "they", are: "is" }
    : { Your: "Your", You: "You", you: "you", are: "are" };
}

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
  parts.cards.append(parts.gpu, parts.checks, parts.warmup);
  root.replaceChildren(parts.verdict, parts.ending, parts.notice, parts.stages, parts.log, parts.cards, parts.actions);
  root.classList.add("lab-server");
  return parts;
}

// state: of journal.js. look: {config, now, primary: [{label, href or null}], and where there is no
// journal: verdict and isEmpty}
export function draw(parts, state, look) {
  drawVerdict(parts, state, look);
  drawWait(parts, state, look.now);
  drawEnding(parts, state, look.now);
  parts.cards.hidden = parts.actions.hidden = look.isEmpty === true;
  renew(parts.stages, stageItems(state, look.now));
  renew(parts.log, failureLog(state));
  renew(parts.gpu, gpuCard(state, look.now));
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
  const links = look.primary.map(({ label, href }) =>
    href
      ? h("a", { class: "btn btn-lg btn-primary", href, role: "button" }, label)
      : h("button", { class: "btn btn-lg btn-primary", type: "button", disabled: true }, label),
  );
  renew(parts.primary, links);
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

function setText(element, text, title = "") {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
  if (element.title !== title) element.title = title;
}

// Move a button that is somewhere else, and the focus with it: the browser drops it on the way.
export function move(element, container) {
  if (element.parentElement === container) return;
  const hadFocus = document.activeElement === element;
  container.append(element);
  if (hadFocus) element.focus();
}

// Replace the children when they differ; keep folds open and the focus where it was.
function renew(container, children) {
  const fresh = h("div", {}, ...children);
  const folds = new Map();
  for (const fold of container.querySelectorAll("details[data-key]")) folds.set(fold.dataset.key, fold.open);
  for (const fold of fresh.querySelectorAll("details[data-key]")) {
    if (folds.has(fold.dataset.key)) fold.open = folds.get(fold.dataset.key);
  }
  if (container.innerHTML === fresh.innerHTML) return;
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  const path = focused ? pathTo(container, focused) : null;
  container.replaceChildren(...fresh.childNodes);
  if (path) path.reduce((node, index) => node?.children[index], container)?.focus();
}

function pathTo(container, element) {
  const path = [];
  for (let node = element; node !== container; node = node.parentElement) {
    path.unshift([...node.parentElement.children].indexOf(node));
  }
  return path;
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

// ---- cards --------------------------------------------------------------------------------------

function head(title, note) {
  return h(
    "div",
    { class: "card-header" },
    h("h2", { class: "h6 mb-0" }, title),
    note ? h("span", { class: "lab-note" }, note) : null,
  );
}

function gpuCard(state, now) {
  if (!state.hasGpuNews) {
    const when = isQueueing(state) ? "as soon as there is one" : "in a moment";
    const said = state.end ? "This start got none." : `Which GPU it is shows here ${when}.`;
    return [head("GPU"), h("div", { class: "card-body lab-quiet" }, said)];
  }
  if (state.gpus.length === 0) {
    return [
      head("No GPU", "CPU only"),
      h(
        "div",
        { class: "card-body" },
        h("p", { class: "mb-1" }, state.gpuMessage || "This server runs without a GPU."),
        h("p", { class: "mb-1" }, "It computes on the CPU: fine for writing code, small models and looking at results."),
        h("p", { class: "lab-quiet mb-0" }, "To use a GPU, stop the server and ask for one at the next start."),
        whyLine(state),
      ),
    ];
  }
  const several = state.gpus.length > 1;
  const first = state.gpus[0];
  const title = several ? `${state.gpus.length} GPUs` : first.name || "GPU";
  return [
    head(title, (several ? "" : slotWords(first)) || shareWords(state.share)),
    h(
      "div",
      { class: "card-body" },
      ...state.gpus.map((gpu) => gpuBody(gpu, { several, measured: measured(state, gpu, now) })),
      leaseLine(state, now),
      whyLine(state),
    ),
  ];
}

function leaseLine({ until, limit, end }, now) {
  const yours = Boolean(end) || until <= now ? "was yours" : "yours";
  const parts = [];
  if (until !== null) parts.push(h("span", { title: exact(until) }, `${yours} until ${clockOrDay(until, now)}`));
  if (limit) parts.push(`memory limit: ${limit}`);
  if (parts.length === 2) parts.splice(1, 0, " · ");
  return parts.length ? h("p", { class: "lab-facts lab-lease" }, ...parts) : null;
}

function whyLine({ why }) {
  return why ? h("p", { class: "lab-quiet lab-small lab-why" }, why) : null;
}

function shareWords(share) {
  if (share === "whole") return "whole GPU";
  if (share === "slot") return "one slot of a shared GPU";
  return share.startsWith("mig:") ? `MIG ${share.slice(4)}` : "";
}

function gpuBody(gpu, { several, measured }) {
  const memory = gpu.memory === null ? "memory unknown" : `${gib(gpu.memory)} GiB`;
  const facts = [
    several ? slotWords(gpu) : "",
    gpu.slots !== null && gpu.memory !== null ? `${memory} in all` : memory,
    gpu.driver ? `driver ${gpu.driver}` : gpu.isSimulated ? "" : "driver unknown",
    gpu.pool && gpu.pool !== "default" ? `pool ${gpu.pool}` : "",
  ].filter(Boolean);
  const rows = [
    several ? h("h3", { class: "h6 mb-1" }, gpu.name || "GPU") : null,
    gpu.isSimulated
      ? h("p", { class: "lab-simulated" }, h("span", { class: "badge text-bg-secondary" }, "simulated"), " There is no such hardware here; PyTorch computes on the CPU.")
      : null,
    h("p", { class: "lab-facts", title: `${gpu.uuid}${gpu.index === null ? "" : `, index ${gpu.index}`}` }, facts.join(" · ")),
  ];
  return h("div", { class: "lab-gpu" }, ...rows, ...measured);
}

function measured(state, gpu, now) {
  const sample = state.samples.get(gpu.uuid);
  if (gpu.isSimulated || (state.end && !sample)) return [];
  if (!sample) return [h("p", { class: "lab-quiet mb-0" }, "Not measured yet.")];
  const used = sample.used === null ? "unknown" : sample.total === null ? `${gib(sample.used)} GiB` : `${gib(sample.used)} of ${gib(sample.total)} GiB`;
  const share = sample.used === null || !sample.total ? null : (100 * sample.used) / sample.total;
  const busy = sample.utilisation === null ? "unknown" : `${Math.round(sample.utilisation)} %`;
  if (state.end || now - sample.at > STALE_S) {
    // Old numbers are history, not what the GPU does now.
    const then = h("span", { title: exact(sample.at) }, `Last measured ${ago(sample.at, now)}`);
    return [h("p", { class: "lab-facts mb-0" }, then, `: in use ${busy}, memory ${used}`)];
  }
  const warmth = [
    `temperature ${sample.temperature === null ? "unknown" : `${Math.round(sample.temperature)} °C`}`,
    `power ${sample.power === null ? "unknown" : `${Math.round(sample.power)} W`}`,
    h("span", { title: exact(sample.at) }, `measured ${ago(sample.at, now)}`),
  ];
  return [
    meter("In use", sample.utilisation, busy, spark(sample.history)),
    meter("Memory", share, used, ""),
    h("p", { class: "lab-facts mb-0" }, warmth[0], " · ", warmth[1], " · ", warmth[2]),
  ];
}

function meter(label, percent, said, history) {
  const bar = h("span", { class: "lab-bar", "aria-hidden": "true" }, h("span", {}));
  const shown = percent === null ? 0 : Math.min(100, Math.max(0, percent));
  bar.firstChild.style.width = `${Math.round(shown)}%`;
  return h(
    "div",
    { class: "lab-meter" },
    h("span", { class: "lab-meter-label" }, label),
    bar,
    h("span", {}, said),
    history ? h("span", { class: "lab-spark", "aria-hidden": "true" }, history) : null,
  );
}

function spark(history) {
  const known = history.filter((value) => value !== null);
  if (known.length < 3) return "";
  return history.map((value) => (value === null ? " " : BARS[Math.min(7, Math.max(0, Math.floor(value / 12.6)))])).join("");
}

function checksCard(state, config) {
  const counts = countChecks(state);
  if (!counts.planned) return [head("Checks"), h("div", { class: "card-body lab-quiet" }, "The checks begin when the container runs.")];
  const note = counts.done < counts.planned && !state.checksDone ? `${counts.done} of ${counts.planned} done` : sayChecks(state);
  const all = [...state.checks.values()];
  const loud = [...all.filter(isDone("fail")), ...all.filter(isDone("warn"))];
  const unknown = all.filter(isDone("unknown"));
  const fine = all.filter(isDone("ok"));
  const running = all.filter(({ phase }) => phase !== "done");
  const body = [
    ...loud.map((check) => loudCheck(check)),
    ...running.slice(0, 1).map((check) => h("p", { class: "lab-quiet mb-1" }, `Checking ${check.code.replaceAll("-", " ").replaceAll("_", " ")}…`)),
    fold("fine", fine, `${fine.length} fine`),
    fold("unknown", unknown, `${unknown.length} could not be found out`),
  ];
  return [head("Checks", note), h("div", { class: "card-body" }, ...body)];
}

function isDone(level) {
  return (check) => check.phase === "done" && check.level === level;
}

function loudCheck(check) {
  const [mark, word] = LEVELS[check.level];
  const advice = [];
  if (check.remedy) advice.push(h("p", { class: "mb-1" }, h("strong", {}, "What to do: "), check.remedy));
  if (check.adminRemedy) advice.push(h("p", { class: "mb-1" }, h("strong", {}, "For your admin: "), check.adminRemedy));
  return h(
    "details",
    { class: `lab-check lab-${check.level}`, open: true, "data-key": `check-${check.code}` },
    h("summary", { title: check.code }, badge(check.level, mark), h("span", { class: "visually-hidden" }, `${word}: `), check.sentence || check.code),
    ...advice,
  );
}

function fold(key, checks, title) {
  if (!checks.length) return null;
  const rows = checks.map((check) => {
    const [mark, word] = LEVELS[check.level];
    return h("li", { title: check.code }, badge(check.level, mark), h("span", { class: "visually-hidden" }, `${word}: `), check.sentence || check.code);
  });
  return h("details", { class: "lab-fold", "data-key": key }, h("summary", {}, title), h("ul", { class: "lab-list" }, ...rows));
}

function badge(level, mark) {
  return h("span", { class: `lab-badge lab-badge-${level}`, "aria-hidden": "true" }, mark);
}

function warmupCard(state) {
  const { targets, over, isOver } = warmupProgress(state);
  if (!state.warmup || !targets.length) {
    const why = state.warmup?.done ? "No warm-up was needed." : state.end ? "There was none." : state.warmupComing ? "It begins when the checks are done." : "Models that the lab warms up show here.";
    return [head("Warm-up"), h("div", { class: "card-body lab-quiet" }, why)];
  }
  const device = state.warmup.device === "cpu" ? " on the CPU" : "";
  const note = isOver ? `done${device}` : `${over} of ${targets.length}${device}`;
  return [
    head("Warm-up of torch.compile", note),
    h(
      "div",
      { class: "card-body" },
      isOver ? null : h("progress", { class: "lab-progress", max: String(targets.length), value: String(over), "aria-label": "Warm-up" }),
      h("ul", { class: "lab-list" }, ...targets.map(targetRow)),
    ),
  ];
}

function targetRow(target) {
  const mode = compileMode(target.mode);
  const name = h("strong", {}, target.model);
  const parts = [name, mode ? h("span", { class: "lab-quiet" }, mode) : null];
  if (target.phase === "done") {
    parts.push(
      target.fromCache
        ? h("span", {}, "from the warm cache ", h("span", { "aria-hidden": "true" }, "✓"))
        : h("span", {}, `cold ${seconds(target.cold)}`),
      h("span", {}, h("span", { "aria-hidden": "true" }, "→ "), `now ${seconds(target.warm)}`),
    );
  } else if (target.phase === "failed") parts.push(h("span", { class: "lab-bad-text" }, "✕ did not compile"));
  else if (target.phase === "skipped") parts.push(h("span", { class: "lab-quiet" }, "skipped"));
  else parts.push(h("span", { class: "lab-quiet" }, target.phase === "running" ? "compiling…" : "next"));
  const said = parts.filter(Boolean).flatMap((part, index) => (index ? [" ", part] : [part]));
  return h("li", { class: "lab-target" }, h("div", { class: "lab-target-line" }, ...said), target.message ? h("div", { class: "lab-quiet lab-small" }, target.message) : null);
}
