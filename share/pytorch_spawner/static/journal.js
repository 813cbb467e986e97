// The journal of one start, folded into what a page shows. Pure: no page, no clock, no network.
// Everything here may come out of a container: texts stay texts, numbers are checked, lists bounded.

const STAGES = [
  ["gpu", "GPU", "Choosing a GPU"],
  ["home", "Home", "Preparing your home directory"],
  ["image", "Image", "Fetching the image"],
  ["container", "Container", "Starting the container"],
  ["lab", "Lab answers", "Waiting for JupyterLab"],
];
const TURN = "Waiting for other starts";
const LEVELS = ["ok", "unknown", "warn", "fail"];
const LIMITS = ["soft", "hard"];
const MAX_ROWS = 200;
const MAX_SENTENCE = 600;
const MAX_SECONDS = 1e7;
const HISTORY = 24;
const MAX_RESETS = 20;

export function emptyState() {
  return {
    stages: [], // {stage, label, at, seconds}, in the order they were reached
    began: null,
    last: null,
    isUp: false,
    url: "",
    end: null, // {kind: "failed" | "stopped" | "cancelled", message, remedy, code, logTail, at}
    queue: null, // {place, of, reason, expectedAt, since, canStartCpu, isLive}, as last heard
    turn: "", // what is told while others start first; "" once the start goes on
    hasGpuNews: false,
    gpus: [],
    share: "",
    gpuMessage: "",
    why: "", // why it was this one's turn
    limit: "", // which memory limit is in force: "soft", "hard" or ""
    until: null, // when the GPU time ends
    ending: null, // {message, until}: a warning that it ends soon
    planned: 0,
    checks: new Map(), // code -> {code, phase, level, sentence, remedy, adminRemedy, seconds, needsRestart, compile}
    warmupComing: false,
    warmup: null, // {device, deviceName, note, targets: Map id -> {...}, done, level}
    courseNote: "", // what a start could not bring of its course
    course: null, // {title, phase: "copying" | "done" | "failed", commit, files, kept, conflicts, resets, ...}
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
    takeQueue(state, event.data, number(event.at), true);
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
    takeQueue(state, data, at, false);
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
    if (stage === "turn") {
      takeTurn(state, data, at);
      return;
    }
    state.turn = "";
    // No stage that anybody waits for.
    if (stage === "course") {
      state.courseNote = text(data.message, MAX_SENTENCE);
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
      needsRestart: data.phase === "done" && data.level === "fail" && isObject(data.facts) && data.facts.restart === true,
      compile: code === "compile" && isObject(data.facts) ? takeCompiled(data.facts) : null,
    });
  },

  warmup(state, data, at) {
    state.warmup ??= { device: "", deviceName: "", targets: new Map(), at, done: null };
    const warmup = state.warmup;
    if (data.phase === "plan") {
      warmup.device = text(data.device) || warmup.device;
      warmup.note = text(data.message, MAX_SENTENCE) || warmup.note;
      warmup.deviceName = text(data.device_name);
      for (const target of list(data.targets)) takeTarget(warmup, target, "planned");
      return;
    }
    takeTarget(warmup, data, text(data.phase));
  },

  course(state, data) {
    const before = state.course ?? { resets: [] };
    const title = text(data.title) || before.title || text(data.course);
    if (data.phase === "begin") {
      state.course = { ...emptyCourse("copying"), title, resets: before.resets };
    } else if (data.phase === "done" || data.phase === "failed") {
      state.course = { ...takeCourse(data), title, resets: before.resets };
    } else if (data.phase === "reset") {
      const said = { message: text(data.message, MAX_SENTENCE), isFine: data.level === "ok" };
      state.course = { ...emptyCourse("done"), ...before, title, resets: [...before.resets, said].slice(-MAX_RESETS) };
    }
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

// What is told live is the present, whatever the clocks say: a journal that is read again only holds
// the place of the beginning.
function takeQueue(state, data, at, isLive) {
  if (state.queue?.isLive && !isLive) return;
  state.queue = {
    isLive,
    place: number(data.place, 1, 1e6),
    of: number(data.of, 1, 1e6),
    reason: text(data.reason, MAX_SENTENCE),
    expectedAt: number(data.expected_at),
    since: number(data.since) ?? state.queue?.since ?? at,
    canStartCpu: data.can_start_cpu === true,
  };
}

// The wait for other starts is a stage of its own, no part of the one before or after it. Once a later
// stage is reached, a turn was written late and means nothing any more.
function takeTurn(state, data, at) {
  if (state.stages.some(({ stage }) => stage !== "queue" && stage !== "gpu")) return;
  const isGiven = number(data.ahead, 0, 0) === 0;
  state.turn = isGiven ? "" : text(data.message, MAX_SENTENCE);
  const waited = isGiven ? number(data.waited_s, 0, MAX_SECONDS) : null;
  if (waited === null) return;
  state.stages.push({ stage: "turn", label: TURN, at, seconds: waited });
  const since = state.last ?? state.began;
  if (at !== null && since !== null) state.last = Math.min(at, since + waited);
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
      migProfile: text(gpu.mig_profile),
      slots: number(gpu.slots, 2, 1000),
      slot: number(gpu.slot, 0, 999),
      slotMemory: number(gpu.slot_memory_mib, 0, 1e8),
    }));
}

function emptyCourse(phase) {
  return { phase, commit: "", files: null, kept: [], conflicts: [], message: "", remedy: "", adminRemedy: "" };
}

function takeCourse(data) {
  const commit = text(data.commit);
  const conflicts = isObject(data.conflicts) ? Object.entries(data.conflicts).slice(0, MAX_ROWS) : [];
  return {
    phase: data.phase,
    commit: /^[0-9a-f]{7,40}$/.test(commit) ? commit.slice(0, 7) : "",
    files: number(data.files, 0, 1e6),
    kept: list(data.kept).map((path) => text(path, MAX_SENTENCE)).filter(Boolean),
    conflicts: conflicts.map(([path, beside]) => ({ path: text(path, MAX_SENTENCE), beside: text(beside, MAX_SENTENCE) })),
    message: text(data.message, MAX_SENTENCE),
    remedy: text(data.remedy, MAX_SENTENCE),
    adminRemedy: text(data.admin_remedy, MAX_SENTENCE),
  };
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
    log: isObject(target.log) ? takeLog(target.log) : (known.log ?? null),
  });
}

function takeLog(log) {
  return {
    first: isObject(log.first) ? takeCounts(log.first) : null,
    second: isObject(log.second) ? takeCounts(log.second) : null,
    reasons: takeLines(log.reasons, 5, MAX_SENTENCE),
    recompiles: number(log.recompiles, 0, 1e6),
    lines: takeLines(log.lines, 24, MAX_SENTENCE),
    error: mask(text(log.error, 5000)),
  };
}

// The check's facts: "graph_breaks" are reasons there, and newer agents tell them at length.
function takeCompiled(facts) {
  const reasons = takeLines(facts.reasons, 5, MAX_SENTENCE);
  const breaks = takeLines(facts.graph_breaks, 5, MAX_SENTENCE);
  return {
    counts: { ...takeCounts(facts), breaks: Array.isArray(facts.graph_breaks) ? breaks.length : null },
    reasons: reasons.length ? reasons : breaks,
    error: mask(text(facts.error, 5000) || text(facts.printed, 5000)),
  };
}

function takeCounts(said) {
  return {
    graphs: number(said.graphs, 0, 1e6),
    frames: number(said.frames, 0, 1e6),
    framesOk: number(said.frames_ok, 0, 1e6),
    breaks: number(said.graph_breaks, 0, 1e6),
    hit: number(said.fx_hit, 0, 1e6),
    miss: number(said.fx_miss, 0, 1e6),
  };
}

function takeLines(said, most, longest) {
  return list(said).slice(0, most).map((line) => mask(text(line, longest))).filter(Boolean);
}

// ---- what follows from the state ----------------------------------------------------------------

export function isQueueing(state) {
  return Boolean(state.queue) && !state.hasGpuNews && !state.isUp && !state.end;
}

// Whether the course's notebooks are still on their way into the home directory.
export function isCopying(state) {
  return state.course?.phase === "copying" && !state.end;
}

export function nextStage(state) {
  if (state.isUp || state.end) return null;
  if (isQueueing(state)) return { stage: "queue", label: "Queue", doing: "Waiting for a GPU" };
  if (state.turn) return { stage: "turn", label: TURN, doing: TURN };
  const reached = STAGES.map(([name]) => state.stages.some(({ stage }) => stage === name));
  const [name, label, doing] = STAGES[reached.lastIndexOf(true) + 1] ?? STAGES[4];
  return { stage: name, label, doing };
}

// The check that only a new container can cure; null for none.
export function restartCheck(state) {
  if (!state.isUp || state.end) return null;
  return [...state.checks.values()].find(({ needsRestart }) => needsRestart) ?? null;
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

export function warmupProgress(state) {
  const targets = [...(state.warmup?.targets.values() ?? [])];
  const over = targets.filter(({ phase }) => !["planned", "running"].includes(phase)).length;
  const isOver = Boolean(state.warmup?.done) || (targets.length > 0 && over === targets.length);
  return { targets, over, isOver, isRunning: (targets.length > 0 || state.warmupComing) && !isOver };
}

// The verdict: what the person came to ask. tone is one of wait, ok, warn, bad, off.
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
