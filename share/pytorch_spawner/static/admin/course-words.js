// Courses in words: how a step is, when the class meets, which commit.

import { h } from "../dom.js";
import { exact, plural, seconds } from "../said.js";

const STATES = {
  waiting: ["○", "not yet"],
  running: ["◐", "running"],
  done: ["●", "done"],
  warned: ["!", "done, with findings"],
  failed: ["✕", "failed"],
  skipped: ["–", "skipped"],
};
const TONES = { ok: "●", wait: "◐", warn: "!", bad: "✕" };
const COPIES = {
  current: ["text-bg-success", "current"],
  behind: ["text-bg-warning", "behind"],
  never: ["lab-badge-free", "never started"],
};

export function short(commit) {
  return commit.slice(0, 8);
}

export function verdictLine({ verdict, sentence }) {
  return h(
    "p",
    { class: `lab-course-verdict lab-course-${verdict}` },
    h("span", { "aria-hidden": "true", class: "lab-course-mark" }, TONES[verdict]),
    h("span", {}, sentence),
  );
}

// The step at which a preload was given up, so that what it fetched is not tried; a course works without its warm cache.
export function untriedStep({ steps }) {
  return steps.find(({ name, is_given_up: isGivenUp }) => isGivenUp && name !== "warm");
}

export function stepItem({ state, label, seconds: took, message, is_given_up: isGivenUp }) {
  const [mark, known] = STATES[state];
  const words = isGivenUp ? "given up" : known;
  const time =
    took === null || state === "waiting" ? "" : h("span", { class: "lab-quiet text-nowrap" }, ` ${seconds(took)}`);
  return h(
    "li",
    { class: `lab-course-step lab-course-step-${state}`, "aria-current": state === "running" ? "step" : null },
    h("span", { "aria-hidden": "true", class: "lab-course-mark" }, mark),
    h(
      "span",
      {},
      h("strong", {}, label),
      h("span", { class: "visually-hidden" }, `, ${words}`),
      time,
      message
        ? h("span", { class: "lab-sub" }, message)
        : h("span", { class: "lab-sub", "aria-hidden": "true" }, words),
    ),
  );
}

export function copyBadge(state) {
  const [style, words] = COPIES[state];
  return h("span", { class: `badge ${style}` }, words);
}

// "Tue 3 Mar, 09:00–11:00" by the reader's clock; exact with the zone on hover.
export function sessionTime({ starts_at: start, ends_at: end }) {
  const at = (time, how) => new Date(time * 1000).toLocaleString([], how);
  const hours = { hour: "2-digit", minute: "2-digit" };
  const day = { weekday: "short", day: "numeric", month: "short" };
  const isOneDay = at(start, day) === at(end, day);
  const text = `${at(start, { ...day, ...hours })}–${at(end, isOneDay ? hours : { ...day, ...hours })}`;
  return h("time", { datetime: new Date(start * 1000).toISOString(), title: exact(start), class: "text-nowrap" }, text);
}

export function seatWords(seats, students) {
  if (seats === null) return students ? `a seat for each of ${plural(students, "student")}` : "a seat for each student";
  return plural(seats, "seat");
}

// "28 students · 25 current · 2 behind · 1 conflict"; what is zero is left out.
export function countWords({ total, current, behind, never, conflicts, failed }) {
  if (!total) return "No students yet";
  const parts = [
    plural(total, "student"),
    current && `${current} current`,
    behind && `${behind} behind`,
    never && `${never} never started`,
    conflicts && `${conflicts} with a conflict`,
    failed && `${failed} could not be updated`,
  ];
  return parts.filter(Boolean).join(" · ");
}

// A piece of what somebody typed, kept for this tab until it is saved or thrown away.
export function draft(key) {
  const name = `lab-course-draft:${key}`;
  return {
    read() {
      try {
        return JSON.parse(sessionStorage.getItem(name));
      } catch {
        return null;
      }
    },
    write(value) {
      try {
        sessionStorage.setItem(name, JSON.stringify(value));
      } catch {
        // A browser may keep nothing; the panel itself still does.
      }
    },
    forget() {
      try {
        sessionStorage.removeItem(name);
      } catch {
        // As above.
      }
    },
  };
}
