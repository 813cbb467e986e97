// One course as a card: is it ready, when is it needed, what can be done.

import { h } from "../dom.js";
import { exact, plural } from "../said.js";
import {
  countWords,
  seatWords,
  sessionTime,
  short,
  stepItem,
  untriedStep,
  verdictLine,
} from "./course-words.js";
import { studentTable } from "./course-students.js";
import { agoTime } from "./list-page.js";

// opened: what of the card is unfolded: {students, details} as read, null while it is asked for.
export function courseCard(course, opened, config) {
  const id = `course-${course.name}`;
  return h(
    "article",
    { class: "lab-course", "aria-labelledby": id },
    h(
      "div",
      { class: "lab-course-head" },
      h(
        "div",
        { class: "lab-course-title" },
        h("h2", { class: "h5 mb-0 text-break", id }, course.title),
        h("p", { class: "lab-sub mb-0" }, `${course.name} · folder ${course.folder}`),
      ),
      nextSession(course),
    ),
    verdictLine(course),
    h("ol", { class: "lab-course-steps", "aria-label": "Steps of the preload" }, ...course.steps.map(stepItem)),
    findings(course),
    mainActions(course, config),
    h(
      "div",
      { class: "lab-course-line" },
      h("span", {}, countWords(course.students)),
      fold("students", "Students", course, opened),
    ),
    opened?.has("students") ? section(course, "students", studentTable(course, opened.get("students"))) : "",
    h(
      "div",
      { class: "lab-course-line" },
      button("timetable", "Timetable…", course),
      button("link", "Link for students…", course),
      button("edit", "Edit manifest…", course),
      fold("details", "Details", course, opened),
      button("remove", "Remove…", course, "lab-risky"),
    ),
    opened?.has("details") ? section(course, "details", details(course, opened.get("details"), config)) : "",
  );
}

function section({ name }, what, children) {
  return h("div", { class: "lab-course-more", id: `${what}-${name}` }, ...children);
}

export function button(action, text, { name, title }, style = "") {
  return h(
    "button",
    {
      type: "button",
      class: `btn btn-sm ${style === "btn-primary" ? style : `btn-outline-contrast ${style}`}`.trim(),
      "data-do": action,
      "data-key": name,
      "aria-label": `${text} ${title} (${name})`,
    },
    text,
  );
}

function fold(what, text, { name, title }, opened) {
  const isOpen = Boolean(opened?.has(what));
  return h(
    "button",
    {
      type: "button",
      class: "btn btn-link lab-open lab-small",
      "data-do": what,
      "data-key": name,
      "aria-expanded": String(isOpen),
      "aria-controls": isOpen ? `${what}-${name}` : null,
      "aria-label": `${text} of ${title} (${name})`,
    },
    h("span", { class: "lab-chevron", "aria-hidden": "true" }, isOpen ? "▾" : "▸"),
    text,
  );
}

function nextSession({ sessions, students, seats_note: note }) {
  const [next] = sessions;
  if (!next) return h("p", { class: "lab-quiet mb-0" }, "no session planned");
  const isNow = next.starts_at * 1000 <= Date.now();
  return h(
    "p",
    { class: "mb-0 lab-course-next" },
    isNow ? "session now, " : "next session ",
    sessionTime(next),
    h("span", { class: "lab-sub" }, [next.title, seatWords(next.seats, students.total)].filter(Boolean).join(" · ")),
    note ? h("span", { class: "lab-sub" }, `! ${note}`) : "",
  );
}

function findings({ name, steps }) {
  const found = steps.filter(({ notes }) => notes.length);
  if (found.length === 0) return "";
  const count = found.reduce((sum, { notes }) => sum + notes.length, 0);
  return h(
    "details",
    { class: "mb-2", "data-key": `findings-${name}` },
    h("summary", {}, plural(count, "finding")),
    h(
      "dl",
      { class: "lab-course-findings lab-small" },
      ...found.flatMap(({ label, notes }) => [
        h("dt", {}, label),
        h("dd", {}, h("ul", {}, ...notes.map((note) => h("li", { class: "text-break" }, note)))),
      ]),
    ),
  );
}

// ---- what can be done ---------------------------------------------------------------------------

function mainActions(course, config) {
  const { task, candidate, verdict } = course;
  const canPublish = !task && candidate.is_new;
  const isFirst = canPublish && verdict !== "bad" && !untriedStep(course);
  const isNeeded = !isFirst && verdict !== "ok";
  const trial = tryLink(course, config);
  return h(
    "div",
    { class: "lab-course-actions" },
    h(
      "div",
      { class: "lab-chips" },
      task
        ? button("stop", "Stop…", course, "lab-risky")
        : button("preload", "Preload", course, isNeeded ? "btn-primary" : ""),
      canPublish ? button("publish", "Publish…", course, isFirst ? "btn-primary" : "") : "",
      trial,
    ),
    trial
      ? h(
          "p",
          { class: "lab-sub mb-0", id: `try-${course.name}` },
          "A try is a throw-away server of yours with an empty home, in a new tab; it is deleted when it stops.",
        )
      : "",
  );
}

// Only the staff have such a server, and only once there is something to look at.
function tryLink({ name, title, staff, candidate, published }, { hubUrl, user }) {
  if (!staff.includes(user) || !(candidate.commit || published.commit)) return "";
  const server = `${encodeURIComponent(user)}/try-${name}`;
  const query = new URLSearchParams({ "opt-course": name, course: name });
  return h(
    "a",
    {
      class: "btn btn-sm btn-outline-contrast",
      href: `${hubUrl}spawn/${server}?${query}`,
      target: "_blank",
      rel: "noopener",
      "aria-label": `Try as a student ${title} (${name}), opens in a new tab`,
      "aria-describedby": `try-${name}`,
    },
    "Try as a student",
  );
}

// ---- details ------------------------------------------------------------------------------------

function details(course, read, { apiUrl }) {
  if (!read) return [h("p", { class: "lab-quiet lab-small mb-0", role: "status" }, "Reading…")];
  const { candidate, published } = course;
  const facts = [
    ["Notebooks", course.source],
    ["Image", course.image],
    ["Looked after by", course.staff.join(", ") || "admins"],
    [
      "Students have",
      published.commit
        ? `${short(published.commit)}, published by ${published.by}, ${exact(published.at)}`
        : "nothing yet",
    ],
    ["Fetched last", candidate.commit ? `${short(candidate.commit)}: ${candidate.says}` : "nothing yet"],
    ["Preloaded", course.preloaded_at ? exact(course.preloaded_at) : "never"],
    ["Manifest changed", exact(course.changed_at)],
  ];
  return [
    h(
      "dl",
      { class: "lab-facts-list lab-small mb-2" },
      ...facts.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
    ),
    h(
      "p",
      { class: "lab-small mb-2" },
      h("a", { href: `${apiUrl}courses/${course.name}/manifest` }, "Download course.yaml"),
    ),
    h("h3", { class: "h6" }, "Last changes"),
    h(
      "ul",
      { class: "lab-small mb-0" },
      ...read.changes.map(({ at, by, sentence }) =>
        h("li", { class: "text-break" }, `${by}, `, agoTime(at), `: ${sentence}`),
      ),
    ),
  ];
}

// What a student sees of a course.
export function memberCard({ name, title, folder, next_session: next, link, is_staff: isStaff }) {
  const id = `my-${name}`;
  return h(
    "article",
    { class: "lab-course", "aria-labelledby": id },
    h(
      "div",
      { class: "lab-course-head" },
      h(
        "div",
        { class: "lab-course-title" },
        h("h3", { class: "h5 mb-0 text-break", id }, title),
        h("p", { class: "lab-sub mb-0" }, `in the folder ${folder} of your home`),
      ),
      next
        ? h(
            "p",
            { class: "mb-0 lab-course-next" },
            next.starts_at * 1000 <= Date.now() ? "session now, " : "next session ",
            sessionTime(next),
            next.title ? h("span", { class: "lab-sub" }, next.title) : "",
          )
        : "",
    ),
    h(
      "p",
      { class: "mb-0" },
      h("a", { class: "btn btn-primary", href: link, "aria-label": `Open ${title}` }, "Open ▸"),
    ),
    isStaff
      ? h(
          "p",
          { class: "lab-sub mt-2 mb-0" },
          "You are named as staff of this course, but your account may not manage courses. ",
          "An admin of the lab can give you that right (custom:lab:instruct).",
        )
      : "",
  );
}
