// Says a journal's state in words: the verdict, times, sizes.

import { countChecks, isCopying, isQueueing, nextStage, restartCheck, warmupProgress } from "./journal.js";

// Codes of failures that a start without a GPU does not have.
const GPU_CODES = ["no-gpu-available", "not-granted", "removed-from-queue", "no-gpu-injection", "ledger-unavailable"];
const MODES = { "max-autotune": "max-autotune", "reduce-overhead": "reduce-overhead" };

export function judge(state, who) {
  if (state.end) return judgeEnd(state, who);
  if (state.isUp) return judgeUp(state, who);
  if (isQueueing(state)) return judgeQueue(state, who);
  const next = nextStage(state);
  const detail = state.turn || (state.seq ? `${next.doing}…` : "Waiting for the first news of it…");
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

// Whether a start without a GPU would get further. No journal at all: the ledger is in trouble, and
// that stops only starts with a GPU.
export function mayStartWithoutGpu({ end, seq }) {
  return end?.kind === "failed" && (GPU_CODES.includes(end.code) || (!end.code && seq === 0));
}

function judgeUp(state, who) {
  const counts = countChecks(state);
  const lost = restartCheck(state);
  if (lost) {
    // What a container says is not put into somebody else's verdict.
    const isOwn = who.you === "you" && lost.sentence;
    return {
      tone: "bad",
      sentence: isOwn ? lost.sentence : `${who.Your} server needs a restart.`,
      detail: `A restart brings it back. Files in the home directory are kept; what ${who.you} did not save is lost.`,
    };
  }
  const isReady =
    state.gpus.length === 0
      ? `${who.Your} server is ready, without a GPU.`
      : state.gpus.every(({ isSimulated }) => isSimulated)
        ? `${who.Your} server is ready, with a simulated GPU.`
        : state.gpus.length === 1
          ? `${who.Your} GPU is ready.`
          : `${who.Your} ${state.gpus.length} GPUs are ready.`;
  if (counts.fail) {
    const first = [...state.checks.values()].find(({ phase, level }) => phase === "done" && level === "fail");
    const cause = who.you === "you" && first?.sentence ? `${first.sentence} ` : "";
    return {
      tone: "warn",
      sentence: `${who.Your} server is ready, but ${plural(counts.fail, "check")} failed.`,
      detail: `${cause}See below what to do. JupyterLab can be used meanwhile.`,
    };
  }
  if (state.course?.phase === "failed") {
    return {
      tone: "warn",
      sentence: `${who.Your} server is ready, but the course's notebooks are not up to date.`,
      detail: "See below what to do. JupyterLab can be used meanwhile.",
    };
  }
  return { tone: "ok", sentence: isReady, detail: upDetail(state, counts, who) };
}

function upDetail(state, counts, who) {
  if (isCopying(state)) return `The course's notebooks are still being copied; ${who.you} can start now.`;
  const { over, targets, isRunning } = warmupProgress(state);
  if (isRunning && targets.length === 0) {
    return `torch.compile warms up in the background once the checks are done; ${who.you} can start now.`;
  }
  if (isRunning) {
    const done = `${over} of ${targets.length}`;
    return `torch.compile is warming up in the background (${done}); ${who.you} can start now.`;
  }
  const failed = targets.filter(({ phase }) => phase === "failed").length;
  if (failed) return `torch.compile failed for ${failed} of ${targets.length} networks; the compile log below says why.`;
  if (counts.warn) return `${plural(counts.warn, "note")} below; nothing that stops ${who.you}.`;
  if (state.hasGpuNews && state.gpus.length === 0) {
    return "It computes on the CPU: fine for code and small models.";
  }
  if (targets.some(({ phase }) => phase === "done")) return "torch.compile is warm.";
  return "";
}

export function sayChecks(state) {
  const counts = countChecks(state);
  const parts = [`${counts.ok} fine`];
  if (counts.fail) parts.push(plural(counts.fail, "problem"));
  if (counts.warn) parts.push(plural(counts.warn, "note"));
  if (counts.unknown) parts.push(`${counts.unknown} unknown`);
  return parts.join(", ");
}

// "up to date, commit 4f1c2a0, 12 files"; "" while nobody knows.
export function sayCourse({ phase, commit, files }) {
  if (phase !== "done") return "";
  const parts = ["up to date"];
  if (commit) parts.push(`commit ${commit}`);
  if (files !== null) parts.push(plural(files, "file"));
  return parts.join(", ");
}

// ---- words --------------------------------------------------------------------------------------

export function words(config) {
  return config.isOwner === false
    ? { Your: `${config.user}'s`, You: config.user, you: "they", are: "is" }
    : { Your: "Your", You: "You", you: "you", are: "are" };
}

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

// "09:00" today, "Tue 09:00" within a week, else "09:00 on Tue 15 Sep".
export function meeting(at, now) {
  const midnight = new Date(now * 1000).setHours(0, 0, 0, 0) / 1000;
  if (at >= midnight + 6 * 86400 || at < midnight) return clockOrDay(at, now);
  const day = new Date(at * 1000).toLocaleDateString([], { weekday: "short" });
  return at < midnight + 86400 ? clock(at) : `${day} ${clock(at)}`;
}

// "3.5"; no needless zero.
export function hours(value) {
  return value.toFixed(1).replace(/\.0$/, "");
}

export function exact(at) {
  return new Date(at * 1000).toLocaleString();
}

export function gib(mib) {
  if (mib === null) return "unknown";
  const value = mib / 1024;
  return value < 10 ? value.toFixed(1).replace(/\.0$/, "") : String(Math.round(value));
}

// "slot 2 of 4 · 20 GiB", "MIG 1g.10gb"; "" for a whole GPU.
export function slotWords({ migProfile, slots, slot, slotMemory }) {
  if (migProfile) return `MIG ${migProfile}`;
  if (slots === null) return "";
  const which = slot === null ? `one of ${slots} slots` : `slot ${slot + 1} of ${slots}`;
  return slotMemory === null ? which : `${which} · ${gib(slotMemory)} GiB`;
}

export function compileMode(mode) {
  return MODES[mode] ?? (mode === "default" ? "" : mode);
}
