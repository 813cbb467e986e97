// The cards of a server: GPU, checks, warm-up.

import { h } from "./dom.js";
import { countChecks, isCopying, isQueueing, warmupProgress } from "./journal.js";
import { ago, clock, clockOrDay, compileMode, exact, gib, hours, lasting, meeting, plural, sayChecks, sayCourse, seconds, slotWords } from "./said.js";

const LEVELS = {
  ok: ["✓", "fine"],
  warn: ["!", "note"],
  fail: ["✕", "problem"],
  unknown: ["?", "unknown"],
};
const STALE_S = 60;
const BARS = "▁▂▃▄▅▆▇█";

function head(title, note) {
  return h(
    "div",
    { class: "card-header" },
    h("h2", { class: "h6 mb-0" }, title),
    note ? h("span", { class: "lab-note" }, note) : null,
  );
}

// standing: {week, next_class} of the service's stream, or {} where nobody knows.
export function gpuCard(state, now, standing = {}) {
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
        leaseLine({ ...state, until: null, limit: "" }, now, { ...standing, week: null }),
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
      leaseLine(state, now, standing),
      whyLine(state),
    ),
  ];
}

function leaseLine({ until, limit, end }, now, standing) {
  const isOver = Boolean(end) || (until !== null && until <= now);
  const parts = [];
  if (until !== null) {
    const left = isOver ? "" : `, ${lasting(until - now)} left`;
    parts.push(h("span", { title: exact(until) }, `${isOver ? "was yours" : "yours"} until ${clockOrDay(until, now)}${left}`));
  }
  if (!end) parts.push(weekPart(standing.week, now), classPart(standing.next_class, now));
  if (limit) parts.push(h("span", {}, `memory limit: ${limit}`));
  const said = parts.filter(Boolean).flatMap((part, index) => (index ? [" · ", part] : [part]));
  return said.length ? h("p", { class: "lab-facts lab-lease" }, ...said) : null;
}

// The hours run on while the server does, so they are counted here and not asked for again.
function weekPart(week, now) {
  if (!week || now >= week.ends_at) return null;
  const used = week.used_h + (week.rate * Math.max(0, now - week.at)) / 3600;
  const title = `GPU-hours of this week, which ends ${exact(week.ends_at)}; a slot counts as its part of a GPU`;
  return h("span", { title }, `${hours(used)} of ${hours(week.limit_h)} h this week`);
}

function classPart(next, now) {
  if (!next || now >= next.ends_at) return null;
  const when = now < next.starts_at ? `next class ${meeting(next.starts_at, now)}` : `class now, until ${clock(next.ends_at)}`;
  return h("span", { title: `${next.title}: ${exact(next.starts_at)}` }, when);
}

function whyLine({ why }) {
  return why ? h("p", { class: "lab-quiet lab-small lab-why" }, why) : null;
}

function shareWords(share) {
  return { whole: "whole GPU", slot: "one slot of a shared GPU" }[share] ?? "";
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

export function checksCard(state, config) {
  const counts = countChecks(state);
  if (!counts.planned) {
    const said = state.end ? "There were none." : "The checks begin when the container runs.";
    return [head("Checks"), h("div", { class: "card-body lab-quiet" }, said)];
  }
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

export function warmupCard(state) {
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
      state.warmup.note ? h("p", { class: "lab-quiet lab-small mb-0" }, state.warmup.note) : null,
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

export function courseCard(state) {
  const { course, courseNote } = state;
  if (!course && !courseNote) return [];
  const body = courseNote ? [h("p", { class: "mb-1" }, ...mark("warn"), courseNote)] : [];
  if (course) body.push(...foundCourse(course, isCopying(state)));
  return [head("Course notebooks", course ? sayCourse(course) : ""), h("div", { class: "card-body" }, ...body)];
}

function foundCourse(course, isOnItsWay) {
  const parts = [h("p", { class: "mb-1" }, h("strong", {}, course.title))];
  if (course.phase === "failed") parts.push(...failedCourse(course));
  else if (course.phase === "done") parts.push(...syncedCourse(course));
  else if (isOnItsWay) {
    parts.push(
      h("p", { class: "mb-1" }, "Still copying the course's notebooks…"),
      h("p", { class: "lab-quiet mb-0" }, "JupyterLab can be opened meanwhile; the files appear by themselves."),
    );
  } else parts.push(h("p", { class: "lab-quiet mb-0" }, "They were still being copied when the server ended."));
  const resets = course.resets.map(({ message, isFine }) => h("li", {}, ...mark(isFine ? "ok" : "warn"), message));
  if (resets.length) parts.push(h("ul", { class: "lab-list" }, ...resets));
  return parts;
}

function mark(level) {
  const [sign, word] = LEVELS[level];
  return [badge(level, sign), h("span", { class: "visually-hidden" }, `${word}: `)];
}

function failedCourse({ message, remedy, adminRemedy }) {
  return [
    h("p", { class: "mb-1" }, ...mark("fail"), message || "The course's notebooks could not be copied."),
    remedy ? h("p", { class: "mb-1" }, h("strong", {}, "What to do: "), remedy) : null,
    adminRemedy ? h("p", { class: "mb-0" }, h("strong", {}, "For your instructor or admin: "), adminRemedy) : null,
  ];
}

function syncedCourse({ kept, conflicts, message }) {
  const rows = message ? [h("p", { class: "lab-quiet lab-small mb-2" }, message)] : [];
  if (conflicts.length) {
    const said = `${plural(conflicts.length, "conflict")}: you and the course both changed ${conflicts.length === 1 ? "this file" : "these files"}`;
    const items = conflicts.map(({ path, beside }) =>
      h("li", {}, h("code", {}, path), " is yours, as you left it. The course's version: ", h("code", {}, beside)),
    );
    rows.push(
      h(
        "details",
        { class: "lab-check lab-warn", open: true, "data-key": "course-conflicts" },
        h("summary", {}, ...mark("warn"), said),
        h("ul", { class: "lab-list" }, ...items),
      ),
    );
  }
  if (kept.length) {
    const items = kept.map((path) => h("li", {}, h("code", {}, path)));
    rows.push(
      h("details", { class: "lab-fold", "data-key": "course-kept" }, h("summary", {}, `${plural(kept.length, "edit")} of yours kept`), h("ul", { class: "lab-list" }, ...items)),
    );
  }
  return rows;
}
