// A course's students: whose copy is where, and one file brought back to the course's version.

import { h } from "../dom.js";
import { plural } from "../said.js";
import { copyBadge, short } from "./course-words.js";
import { agoTime } from "./list-page.js";
import { field, openPanel, toast } from "./ui.js";

// read: what the service said of them; null before it did.
export function studentTable({ title, name }, read) {
  if (!read) return [h("p", { class: "lab-quiet lab-small mb-0", role: "status" }, "Looking for students…")];
  const note = read.note ? h("p", { class: "lab-small" }, read.note) : "";
  if (read.students.length === 0) {
    return [
      note,
      h(
        "p",
        { class: "mb-0" },
        "Nobody belongs to this course yet. Name groups or users under members in the manifest; ",
        "their next start can then be for this course.",
      ),
    ].filter(Boolean);
  }
  const heads = ["Student", "Copy", "Own changes", "Conflicts", "Heard", "Actions"];
  return [
    note,
    h(
      "div",
      { class: "lab-scroll lab-course-students", tabindex: "0", role: "region", "aria-label": `Students of ${title}` },
      h(
        "table",
        { class: "table table-sm align-top lab-cards-table lab-student-table mb-0", role: "table" },
        h("caption", { class: "visually-hidden" }, `Students of ${title}`),
        h(
          "thead",
          { role: "rowgroup" },
          h("tr", { role: "row" }, ...heads.map((text) => h("th", { scope: "col", role: "columnheader" }, text))),
        ),
        h("tbody", { role: "rowgroup" }, ...read.students.map((row) => studentRow(row, name))),
      ),
    ),
  ].filter(Boolean);
}

function studentRow(row, course) {
  const cell = (name, ...children) => h("td", { role: "cell", "data-column": name, class: "text-break" }, ...children);
  const conflicts = Object.entries(row.conflicts);
  return h(
    "tr",
    { role: "row" },
    h(
      "th",
      { scope: "row", role: "rowheader", class: "text-break" },
      row.user,
      row.is_member ? "" : h("span", { class: "lab-sub fw-normal" }, "staff, or not a member any more"),
    ),
    cell(
      "Copy",
      h(
        "div",
        {},
        copyBadge(row.state),
        row.commit ? h("span", { class: "lab-sub" }, short(row.commit)) : "",
        row.level === "ok" || !row.message ? "" : h("span", { class: "lab-sub" }, row.message),
      ),
    ),
    cell(
      "Own changes",
      row.kept.length ? pathList(plural(row.kept.length, "file"), row.kept, `kept-${course}-${row.user}`) : "–",
    ),
    cell(
      "Conflicts",
      conflicts.length
        ? h(
            "ul",
            { class: "lab-course-paths" },
            ...conflicts.map(([path, beside]) =>
              h("li", {}, path, h("span", { class: "lab-sub" }, `the course's version: ${beside}`)),
            ),
          )
        : "–",
    ),
    cell("Heard", row.at === null ? h("span", { class: "lab-quiet" }, "never") : agoTime(row.at)),
    cell("", h("div", {}, row.state === "never" ? "" : resetButton(row, course), ...row.orders.map(waiting))),
  );
}

function waiting({ path, by, at }) {
  return h("span", { class: "lab-sub" }, `${path}: reset asked for by ${by}, `, agoTime(at));
}

function pathList(text, paths, key) {
  return h(
    "details",
    { "data-key": key },
    h("summary", {}, text),
    h("ul", { class: "lab-course-paths" }, ...paths.map((path) => h("li", {}, path))),
  );
}

function resetButton({ user }, course) {
  return h(
    "button",
    {
      type: "button",
      class: "btn btn-sm btn-outline-contrast text-nowrap",
      "data-do": "reset",
      "data-key": course,
      "data-user": user,
      "aria-label": `Reset a file… of ${user}`,
    },
    "Reset a file…",
  );
}

// row: the student; save(body) orders it.
export function openReset({ title, row, save }) {
  const known = [...new Set([...Object.keys(row.conflicts), ...row.kept])];
  const path = field({
    label: "File",
    name: "path",
    value: Object.keys(row.conflicts)[0] ?? "",
    suggestions: known,
    required: true,
    maxlength: "400",
    placeholder: "week-1/cnn.ipynb",
    help: "Inside the course's folder.",
  });
  openPanel({
    title: `Reset a file of ${row.user}`,
    body: [
      h(
        "p",
        {},
        `The file becomes what ${title} has now. What ${row.user} wrote is kept beside it, as a backup with the date in its name.`,
      ),
      path.node,
    ],
    save: {
      label: "Reset it",
      busy: "Asking…",
      async run() {
        if (!path.input.value.trim()) {
          path.setProblem("Name a file.");
          path.input.focus();
          return false;
        }
        toast(await save({ user: row.user, path: path.input.value.trim() }));
        return true;
      },
    },
  });
}
