// The journal of one start, folded into what a page shows. Pure: no page, no clock, no network.
// Everything here may come out of a container: texts stay texts, numbers are checked, lists bounded.

const STAGES = [
  ["gpu", "GPU", "Choosing a GPU"],
  ["home", "Home", "Preparing your home directory"],
  ["image", "Image", "Fetching the image"],
  ["container", "Container", "Starting the container"],
  ["lab", "Lab answers", "Waiting for JupyterLab"],
];
const LEVELS = ["ok", "unknown", "warn", "fail"];
const LIMITS = ["soft", "hard"];
const MODES = { "max-autotune": "max-autotune", "reduce-overhead": "reduce-overhead" };
const MAX_ROWS = 200;
const MAX_SENTENCE = 600;
const MAX_SECONDS = 1e7;
const HISTORY = 24;

export function emptyState() {
  return {
    stages: [], // {stage, label, at, seconds}, in the order they were reached
    began: null,
    last: null,
    isUp: false,
    url: "",
    end: null, // {kind: "failed" | "stopped" | "cancelled", message, remedy, code, logTail, at}
    queue: null, // {place, of, reason, expectedAt, since, canStartCpu, at}, as last heard
    hasGpuNews: false,
    gpus: [],
    share: "",
    gpuMessage: "",
    why: "", // why it was this one's turn
    limit: "", // which memory limit is in force: "soft", "hard" or ""
    until: null, // when the GPU time ends
    ending: null, // {message, until}: a warning that it ends soon
    planned: 0,
    checks: new Map(), // code -> {code, phase, level, sentence, remedy, adminRemedy, seconds}
    warmupComing: false,
    warmup: null, // {device, deviceName, targets: Map id -> {...}, done, level}
    samples: new Map(), // uuid -> {utilisation, used, total, temperature, power, at, history}
    seq: 0,
  };
}

// Fold a whole journal; pages that follow call add() for each further event.
export function fold(events) {
  const state = emptyState();
  for (const event of events) add(state, event);
  return state;
}

export function add(state, event) {
  if (!event || typeof event !== "object") return state;
  // Number 0 is the present state of the queue, not an entry of the journal: it comes again and again.
  if (event.seq === 0 && event.kind === "queue" && isObject(event.data)) {
    takeQueue(state, event.data, number(event.at));
  }
  if (!(event.seq > state.seq)) return state;
  state.seq = event.seq;
  const at = number(event.at);
  if (state.began === null) state.began = at;
  const data = isObject(event.data) ? event.data : {};
  const folder = FOLDERS[event.kind];
  if (folder) folder(state, data, at);
  return state;
}

const FOLDERS = {
  queue(state, data, at) {
    takeQueue(state, data, at);
    state.last ??= at;
  },

  start(state, data, at) {
    const stage = text(data.stage);
    if (stage === "failed" || stage === "stopped" || stage === "cancelled") {
      state.end = {
        kind: stage,
        at,
        message: text(data.message, MAX_SENTENCE),
        remedy: text(data.remedy, MAX_SENTENCE),
        code: text(data.code),
        logTail: list(data.log_tail).map((line) => mask(text(line, 2000))),
      };
      return;
    }
    if (stage === "ending") {
      state.ending = { message: text(data.message, MAX_SENTENCE), until: number(data.until) };
      state.until = state.ending.until ?? state.until;
      return;
    }
    // The warm-up begins after Lab answers, so its own events come too late for the pending page.
    if (data.warmup === true) state.warmupComing = true;
    const waited = stage === "gpu" ? number(data.waited_s, 0, MAX_SECONDS) : null;
    if (stage === "gpu") takeGpus(state, data);
    if (waited !== null && !state.stages.some((reached) => reached.stage === "queue")) {
      state.stages.push({ stage: "queue", label: "Queue", at, seconds: waited });
    }
    if (stage === "lab") {
      state.isUp = true;
      state.url = text(data.url);
    }
    const known = STAGES.find(([name]) => name === stage);
    if (known && !state.stages.some((reached) => reached.stage === stage)) {
      const since = state.last ?? state.began;
      state.stages.push({ stage, label: known[1], at, seconds: Math.max(0, at - since - (waited ?? 0)) });
    }
    state.last = at;
  },

  check(state, data) {
    if (data.phase === "plan") {
      state.planned = Math.min(list(data.codes).length, MAX_ROWS);
      return;
    }
    const code = text(data.code);
    if (!code || (state.checks.size >= MAX_ROWS && !state.checks.has(code))) return;
    state.checks.set(code, {
      code,
      phase: data.phase === "done" ? "done" : "running",
      level: LEVELS.includes(data.level) ? data.level : "unknown",
      sentence: text(data.sentence, MAX_SENTENCE),
      remedy: text(data.remedy, MAX_SENTENCE),
      adminRemedy: text(data.admin_remedy, MAX_SENTENCE),
      seconds: number(data.seconds, 0, MAX_SECONDS),
    });
  },

  warmup(state, data, at) {
    state.warmup ??= { device: "", deviceName: "", targets: new Map(), at, done: null };
    const warmup = state.warmup;
    if (data.phase === "plan") {
      warmup.device = text(data.device);
      warmup.deviceName = text(data.device_name);
      for (const target of list(data.targets)) takeTarget(warmup, target, "planned");
      return;
    }
    takeTarget(warmup, data, text(data.phase));
  },

  sample(state, data, at) {
    for (const row of list(data.gpus).slice(0, 32)) {
      if (!isObject(row)) continue;
      const uuid = text(row.uuid);
      const history = state.samples.get(uuid)?.history ?? [];
      const utilisation = number(row.utilisation_pct, 0, 100);
      state.samples.set(uuid, {
        utilisation,
        used: number(row.memory_used_mib, 0, 1e8),
        total: number(row.memory_total_mib, 0, 1e8),
        temperature: number(row.temperature_c, -100, 300),
        power: number(row.power_w, 0, 1e5),
        at,
        history: [...history, utilisation].slice(-HISTORY),
      });
    }
  },

  done(state, data, at) {
    const seconds = number(data.seconds, 0, MAX_SECONDS);
    if (data.part === "warmup") {
      state.warmup ??= { device: "", deviceName: "", targets: new Map(), at, done: null };
      state.warmup.done = { seconds, at };
    }
    if (data.part === "checks") state.checksDone = { seconds, at };
  },
};

function takeQueue(state, data, at) {
  // A journal that is read again holds the place of the beginning; the present one is newer.
  if (state.queue && at < state.queue.at) return;
  state.queue = {
    at,
    place: number(data.place, 1, 1e6),
    of: number(data.of, 1, 1e6),
    reason: text(data.reason, MAX_SENTENCE),
    expectedAt: number(data.expected_at),
    since: number(data.since) ?? state.queue?.since ?? at,
    canStartCpu: data.can_start_cpu === true,
  };
}

function takeGpus(state, data) {
  state.hasGpuNews = true;
  state.share = text(data.share);
  state.gpuMessage = text(data.message, MAX_SENTENCE);
  state.why = text(data.why, MAX_SENTENCE);
  state.limit = LIMITS.includes(data.limit) ? data.limit : "";
  state.until = number(data.until);
  // A lease that was given again, or made longer, is not about to end.
  if (state.ending && (state.until === null || state.until > state.ending.until)) state.ending = null;
  state.gpus = list(data.gpus)
    .slice(0, 32)
    .filter(isObject)
    .map((gpu) => ({
      uuid: text(gpu.uuid),
      index: number(gpu.index),
      name: text(gpu.name),
      memory: number(gpu.memory_mib),
      driver: text(gpu.driver),
      pool: text(gpu.pool),
      isSimulated: gpu.is_simulated === true,
      slots: number(gpu.slots, 2, 1000),
      slot: number(gpu.slot, 0, 999),
      slotMemory: number(gpu.slot_memory_mib, 0, 1e8),
    }));
}

function takeTarget(warmup, target, phase) {
  if (!isObject(target)) return;
  const id = text(target.id);
  if (!id || (warmup.targets.size >= 32 && !warmup.targets.has(id))) return;
  const known = warmup.targets.get(id) ?? {};
  warmup.targets.set(id, {
    id,
    model: text(target.model) || known.model || id,
    mode: text(target.mode) || known.mode || "",
    phase: ["planned", "running", "done", "failed", "skipped"].includes(phase) ? phase : "running",
    cold: number(target.cold_s, 0, MAX_SECONDS),
    warm: number(target.warm_s, 0, MAX_SECONDS),
    fromCache: target.from_cache === true,
    message: text(target.message, MAX_SENTENCE),
  });
}

// ---- what follows from the state ----------------------------------------------------------------

export function isQueueing(state) {
  return Boolean(state.queue) && !state.hasGpuNews && !state.isUp && !state.end;
}

export function nextStage(state) {
  if (state.isUp || state.end) return null;
  if (isQueueing(state)) return { stage: "queue", label: "Queue", doing: "Waiting for a GPU" };
  const reached = STAGES.map(([name]) => state.stages.some(({ stage }) => stage === name));
  const [name, label, doing] = STAGES[reached.lastIndexOf(true) + 1] ?? STAGES[4];
  return { stage: name, label, doing };
}

export function countChecks(state) {
  const counts = { ok: 0, unknown: 0, warn: 0, fail: 0, running: 0 };
  for (const check of state.checks.values()) {
    counts[check.phase === "done" ? check.level : "running"] += 1;
  }
  counts.done = counts.ok + counts.unknown + counts.warn + counts.fail;
  counts.planned = Math.max(state.planned, state.checks.size);
  return counts;
}

export function sayChecks(state) {
  const counts = countChecks(state);
  const parts = [`${counts.ok} fine`];
  if (counts.fail) parts.push(plural(counts.fail, "problem"));
  if (counts.warn) parts.push(plural(counts.warn, "note"));
  if (counts.unknown) parts.push(`${counts.unknown} unknown`);
  return parts.join(", ");
}

export function warmupProgress(state) {
  const targets = [...(state.warmup?.targets.values() ?? [])];
  const over = targets.filter(({ phase }) => !["planned", "running"].includes(phase)).length;
  const isOver = Boolean(state.warmup?.done) || (targets.length > 0 && over === targets.length);
  return { targets, over, isOver, isRunning: (targets.length > 0 || state.warmupComing) && !isOver };
}

// The verdict: what the person came to ask. tone is one of wait, ok, warn, bad, off.
export function judge(state, who) {
  if (state.end) return judgeEnd(state, who);
  if (state.isUp) return judgeUp(state, who);
  if (isQueueing(state)) return judgeQueue(state, who);
  const next = nextStage(state);
  const detail = state.seq ? `${next.doing}…` : "Waiting for the first news of it…";
  return { tone: "wait", sentence: `${who.Your} server is starting.`, detail };
}

function judgeQueue({ queue }, who) {
  return {
    tone: "wait",
    sentence: `${who.You} ${who.are} ${placeWords(queue)}.`,
    detail: queue.reason || "The server starts by itself when a GPU is free.",
  };
}

function placeWords({ place }) {
  return place === null ? "in the queue" : `${ordinal(place)} in the queue`;
}

// Since when, and how long still: two times that run, so they are not part of the verdict, which is
// read out when it changes.
export function waiting({ queue }, now) {
  const expected =
    queue.expectedAt === null
      ? "expected time unknown"
      : queue.expectedAt <= now
        ? "expected any moment"
        : `expected at ${clockOrDay(queue.expectedAt, now)}, in ${lasting(queue.expectedAt - now)}`;
  return { since: `Waiting for ${lasting(now - queue.since)}`, expected };
}

// For a tab in the background: the place first, since a tab shows little.
export function title(state, who) {
  if (!isQueueing(state)) return judge(state, who).sentence;
  const place = placeWords(state.queue);
  return place.charAt(0).toUpperCase() + place.slice(1);
}

function judgeEnd({ end }, who) {
  if (end.kind === "failed") {
    return {
      tone: "bad",
      sentence: end.message || `${who.Your} server did not start.`,
      detail: end.remedy,
    };
  }
  const verb = end.kind === "cancelled" ? "The start was cancelled." : "";
  return {
    tone: "off",
    sentence: end.hasLeftQueue ? `${who.You} left the queue.` : verb || `${who.Your} server is stopped.`,
    detail: "Files in the home directory are kept.",
  };
}

function judgeUp(state, who) {
  const counts = countChecks(state);
  const isReady =
    state.gpus.length === 0
      ? `${who.Your} server is ready, without a GPU.`
      : state.gpus.every(({ isSimulated }) => isSimulated)
        ? `${who.Your} server is ready, with a simulated GPU.`
        : state.gpus.length === 1
          ? `${who.Your} GPU is ready.`
          : `${who.Your} ${state.gpus.length} GPUs are ready.`;
  if (counts.fail) {
    return {
      tone: "warn",
      sentence: `${who.Your} server is ready, but ${plural(counts.fail, "check")} failed.`,
      detail: "See below what to do. JupyterLab can be used meanwhile.",
    };
  }
  return { tone: "ok", sentence: isReady, detail: upDetail(state, counts, who) };
}

function upDetail(state, counts, who) {
  const { over, targets, isRunning } = warmupProgress(state);
  if (isRunning && targets.length === 0) {
    return `torch.compile warms up in the background once the checks are done; ${who.you} can start now.`;
  }
  if (isRunning) {
    const done = `${over} of ${targets.length}`;
    return `torch.compile is warming up in the background (${done}); ${who.you} can start now.`;
  }
  if (counts.warn) return `${plural(counts.warn, "note")} below; nothing that stops ${who.you}.`;
  if (state.hasGpuNews && state.gpus.length === 0) {
    return "It computes on the CPU: fine for code and small models.";
  }
  if (targets.some(({ phase }) => phase === "done")) return "torch.compile is warm.";
  return "";
}

// ---- words --------------------------------------------------------------------------------------

export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

export function ordinal(count) {
  const tens = count % 100;
  const ending = tens >= 11 && tens <= 13 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[count % 10] ?? "th");
  return `${count}${ending}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "unknown";
  if (value < 0.05) return "0 s";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

export function ago(at, now) {
  const passed = Math.max(0, now - at);
  return passed < 5 ? "just now" : `${seconds(Math.round(passed)).replace(".0", "")} ago`;
}

export function lasting(value) {
  return seconds(Math.max(0, Math.floor(value))).replace(".0", "");
}

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

// "16:30", and with its day when that is not today.
export function clockOrDay(at, now) {
  const names = { weekday: "short", day: "numeric", month: "short" };
  const day = (time) => new Date(time * 1000).toLocaleDateString([], names);
  return day(at) === day(now) ? clock(at) : `${clock(at)} on ${day(at)}`;
}

export function exact(at) {
  return new Date(at * 1000).toLocaleString();
}

export function gib(mib) {
  if (mib === null) return "unknown";
  const value = mib / 1024;
  return value < 10 ? value.toFixed(1).replace(/\.0$/, "") : String(Math.round(value));
}

// "slot 2 of 4 · 20 GiB"; "" where the GPU is not cut into slots.
export function slotWords({ slots, slot, slotMemory }) {
  if (slots === null) return "";
  const which = slot === null ? `one of ${slots} slots` : `slot ${slot + 1} of ${slots}`;
  return slotMemory === null ? which : `${which} · ${gib(slotMemory)} GiB`;
}

export function compileMode(mode) {
  return MODES[mode] ?? (mode === "default" ? "" : mode);
}

// What a helpdesk needs, as plain text.
export function report(state, server, who, now) {
  const verdict = judge(state, who);
  const lines = [
    `Server: ${server.user}/${server.server || "(default)"}`,
    `Start: ${server.start || "unknown"}`,
    `Image: ${server.image || "unknown"}`,
    `Report made: ${new Date(now * 1000).toISOString()}`,
    "",
    `${verdict.sentence} ${verdict.detail}`.trim(),
    "",
    `Stages: ${state.stages.map((s) => `${s.label} ${seconds(s.seconds)}`).join(", ") || "none"}`,
  ];
  if (isQueueing(state)) {
    const { place, of, since, expectedAt } = state.queue;
    const when = expectedAt === null ? "unknown" : new Date(expectedAt * 1000).toISOString();
    const where = `place ${place ?? "unknown"} of ${of ?? "unknown"}`;
    lines.push(`Queue: ${where}, waiting ${lasting(now - since)}, expected ${when}`);
  }
  for (const gpu of state.gpus) {
    const simulated = gpu.isSimulated ? ", simulated" : "";
    const memory = gpu.memory === null ? "" : `, ${gib(gpu.memory)} GiB`;
    const slot = slotWords(gpu) ? `, ${slotWords(gpu)}` : "";
    lines.push(`GPU: ${gpu.name || "unnamed"}${memory}${slot}, ${gpu.uuid}, driver ${gpu.driver || "unknown"}${simulated}`);
  }
  if (state.limit) lines.push(`Memory limit: ${state.limit}`);
  if (state.until !== null) lines.push(`GPU until: ${new Date(state.until * 1000).toISOString()}`);
  if (state.why) lines.push(`Why: ${state.why}`);
  if (state.hasGpuNews && state.gpus.length === 0) lines.push("GPU: none");
  if (state.checks.size) lines.push("", `Checks: ${sayChecks(state)}`);
  for (const check of state.checks.values()) {
    if (check.phase !== "done") lines.push(`  running  ${check.code}`);
    else lines.push(`  ${check.level.padEnd(7)}  ${check.code}: ${check.sentence}`);
  }
  const { targets } = warmupProgress(state);
  if (targets.length) lines.push("", "Warm-up:");
  for (const target of targets) {
    const times = target.phase === "done" ? `cold ${seconds(target.cold)}, warm ${seconds(target.warm)}` : "";
    lines.push(`  ${target.model} ${target.mode} ${target.phase} ${times} ${target.message}`.trimEnd());
  }
  if (state.end?.code) lines.push("", `Error code: ${state.end.code}`);
  if (state.end?.logTail.length) lines.push("Last lines of the log:", ...state.end.logTail.map((line) => `  ${line}`));
  return `${lines.join("\n")}\n`;
}

// Log lines may hold what somebody printed: hide the obvious.
function mask(line) {
  return line
    .replace(/(token|bearer|password|passwd|secret|api[_-]?key)(["']?\s*[=: ]\s*["']?)[^\s"'&]+/gi, "$1$2***")
    .replace(/\b[0-9a-fA-F]{32,}\b/g, "***")
    .replace(/(\/\/[^/\s:@]*:)[^@\s/]+@/g, "$1***@");
}

// ---- reading hostile values ---------------------------------------------------------------------

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value, longest = 200) {
  if (typeof value !== "string") return "";
  return value.length <= longest ? value : `${value.slice(0, longest)}…`;
}

// Outside of what it can be, a number is not known.
function number(value, least = -Number.MAX_VALUE, most = Number.MAX_VALUE) {
  return typeof value === "number" && value >= least && value <= most ? value : null;
}

function list(value) {
  return Array.isArray(value) ? value.slice(0, MAX_ROWS) : [];
}
