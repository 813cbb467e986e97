// The panels that add a course and change its manifest. Nothing typed is lost: what is not saved
// is kept for this tab, and faults stand beside it.

import { h } from "../dom.js";
import { draft } from "./course-words.js";
import { field, openPanel } from "./ui.js";

const STARTER = `name: my-course
title: My course
source:
  git: https://github.com/someone/notebooks.git
  branch: main
# Who belongs to it: JupyterHub groups, and users by name.
members:
  groups: []
  users: []
`;

// course: {name, title, yaml, etag}; null for a new one. save(body, etag) keeps it.
export function openYaml({ user, course = null, text = "", labUrl, save }) {
  const kept = draft(`${user}:${course?.name ?? ""}`);
  const saved = course?.yaml ?? (text || STARTER);
  const before = text ? null : kept.read();
  const panel = { etag: before?.etag ?? course?.etag ?? null };
  const area = field({
    label: "course.yaml",
    name: "yaml",
    kind: "textarea",
    value: before?.text ?? saved,
    rows: "24",
    wrap: "off",
    spellcheck: "false",
    autocapitalize: "off",
    class: "form-control lab-course-yaml",
  });
  const faults = h("div", {});
  const there = h("div", {});
  area.input.addEventListener("input", () => kept.write({ text: area.input.value, etag: panel.etag }));
  const schema = h("a", { href: `${labUrl}api/courses/schema`, target: "_blank", rel: "noopener" }, "JSON schema");
  const about = h(
    "p",
    { class: "lab-small" },
    "Everything a course is, in one text; comments are not kept. For editors there is a ",
    schema,
    ".",
  );
  const notice = before && before.text !== saved ? unsaved({ area, saved, before, kept }) : "";
  const opened = openPanel({
    title: course ? `Manifest of ${course.title}` : "Add a course",
    body: [about, notice, faults, loadFile(area), area.node, there].filter(Boolean),
    save: {
      label: course ? "Save" : "Add",
      async run() {
        faults.replaceChildren();
        try {
          await save({ yaml: area.input.value }, panel.etag);
        } catch (error) {
          showFaults(faults, area.input, error);
          throw error;
        }
        kept.forget();
        return true;
      },
      onConflict(now) {
        panel.etag = now?.etag ?? "*";
        kept.write({ text: area.input.value, etag: panel.etag });
        there.replaceChildren(whatIsThere(now));
      },
    },
  });
  opened.node.classList.add("lab-panel-wide");
}

function unsaved({ area, saved, before, kept }) {
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, "Show what is saved");
  let isTyped = true;
  button.addEventListener("click", () => {
    if (isTyped) before.text = area.input.value;
    isTyped = !isTyped;
    area.input.value = isTyped ? before.text : saved;
    if (isTyped) kept.write(before);
    button.textContent = isTyped ? "Show what is saved" : "Show what I typed";
  });
  return h(
    "div",
    { class: "alert alert-info d-flex flex-wrap gap-2 align-items-center", role: "status" },
    "This is what you typed and did not save.",
    button,
  );
}

function loadFile(area) {
  const one = field({ label: "Load a file", name: "file", type: "file", accept: ".yaml,.yml,text/yaml" });
  one.input.addEventListener("change", async () => {
    const [file] = one.input.files;
    if (!file) return;
    area.input.value = await file.text();
    area.input.dispatchEvent(new Event("input"));
    area.input.focus();
  });
  return h("details", { class: "mb-3" }, h("summary", {}, "Take it from a file"), one.node);
}

// Each fault with its line, which a click goes to. What is said here is not said above again.
function showFaults(place, input, error) {
  const { problems = [] } = error;
  if (problems.length === 0) return;
  const goTo = (row) => {
    const lines = input.value.split("\n");
    const from = lines.slice(0, row - 1).join("\n").length + (row > 1 ? 1 : 0);
    input.focus();
    input.setSelectionRange(from, from + (lines[row - 1] ?? "").length);
    input.scrollTop = (input.scrollHeight / lines.length) * Math.max(0, row - 4);
  };
  const items = problems.map(({ row, field: name, message }) => {
    const said = `${name ? `${name}: ` : ""}${message}`;
    if (!row) return h("li", { class: "mb-1" }, said);
    const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, `Go to line ${row}`);
    button.addEventListener("click", () => goTo(row));
    return h("li", { class: "mb-1" }, button, ` ${said}`);
  });
  place.replaceChildren(h("ul", { class: "list-unstyled", "aria-label": "Faults by line" }, ...items));
  error.message = `Nothing was saved: ${problems.length === 1 ? "there is a fault" : `there are ${problems.length} faults`} in it.`;
  error.problems = [];
  error.faults = [];
}

function whatIsThere(now) {
  if (!now) return h("p", {}, "The course is gone. Copy your text before you close this.");
  const area = h("textarea", {
    class: "form-control lab-course-yaml",
    rows: "12",
    readonly: true,
    wrap: "off",
    id: "course-there",
  });
  area.value = now.yaml;
  return h(
    "div",
    { class: "mt-3" },
    h(
      "label",
      { for: "course-there", class: "form-label" },
      "What is saved now (yours is above; saving again puts it in this one's place)",
    ),
    area,
  );
}

// ---- a form for a new one -----------------------------------------------------------------------

const GPUS = [
  ["", "as the lab decides"],
  ["0", "none, on the CPU"],
  ["1", "1"],
  ["2", "2"],
  ["4", "4"],
];

// save(body) adds the course; asYaml(text) goes on with its text.
export function openForm({ user, save, asYaml }) {
  const kept = draft(`${user}:form`);
  const was = kept.read() ?? {};
  const one = (name, label, more = {}) => field({ label, name, value: was[name] ?? "", maxlength: "500", ...more });
  const lists = "Names, with commas or one a line.";
  const fields = [
    one("title", "Title", { required: true, maxlength: "120" }),
    one("name", "Short name", {
      required: true,
      maxlength: "25",
      help: "In addresses, and the folder in each student's home: a to z, 0 to 9 and -. It stays.",
    }),
    one("source.git", "Git repository", {
      type: "url",
      required: true,
      placeholder: "https://github.com/someone/notebooks.git",
      help: "It has to be readable without a password.",
    }),
    one("source.branch", "Branch", { help: "Empty for the repository's own." }),
    one("source.path", "Directory in it", { help: "Empty for all of it." }),
    one("image", "Image", { value: was.image ?? "auto", help: "One of the lab's, or auto." }),
    one("request.gpus", "GPUs of each student", { kind: "select", options: GPUS, maxlength: null }),
    one("members.groups", "Groups of students", { help: lists }),
    one("members.users", "Students", { kind: "textarea", rows: "3", maxlength: null, help: lists }),
    one("members.staff", "Who looks after it", { help: `${lists} You are added yourself.` }),
  ];
  const inputs = Object.fromEntries(fields.map(({ input }) => [input.name, input]));
  const values = () => Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
  let isNamed = Boolean(inputs.name.value);
  inputs.name.addEventListener("input", () => (isNamed = true));
  inputs.title.addEventListener("input", () => {
    if (!isNamed) inputs.name.value = slug(inputs.title.value);
  });
  const more = h("button", { type: "button", class: "btn btn-outline-contrast" }, "Go on in course.yaml…");
  const panel = openPanel({
    title: "Add a course",
    body: [
      h(
        "p",
        {},
        "What is not asked for here (data, smoke test, warm-up, timetable) can be added later in its manifest.",
      ),
      ...fields.map(({ node }) => node),
    ],
    extra: more,
    save: {
      label: "Add",
      async run() {
        const empty = fields.find(({ input }) => input.required && !input.value.trim());
        if (empty) {
          empty.setProblem("This is needed.");
          empty.input.focus();
          return false;
        }
        await save(manifestOf(values()));
        kept.forget();
        return true;
      },
    },
  });
  panel.node.addEventListener("input", () => kept.write(values()));
  more.addEventListener("click", () => {
    panel.close();
    asYaml(yamlOf(manifestOf(values())));
  });
}

function slug(title) {
  const letters = title.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const plain = letters.replace(/[^a-z0-9]+/g, "-");
  return plain
    .replace(/^[^a-z]+/, "")
    .slice(0, 25)
    .replace(/-+$/, "");
}

function names(text) {
  return text
    .split(/[,\n]/)
    .map((one) => one.trim())
    .filter(Boolean);
}

function manifestOf(said) {
  const source = {
    git: said["source.git"].trim(),
    branch: said["source.branch"].trim(),
    path: said["source.path"].trim(),
  };
  const members = {
    groups: names(said["members.groups"]),
    users: names(said["members.users"]),
    staff: names(said["members.staff"]),
  };
  return {
    name: said.name.trim(),
    title: said.title.trim(),
    source: onlySaid(source),
    ...(said.image.trim() && said.image.trim() !== "auto" ? { image: said.image.trim() } : {}),
    ...(said["request.gpus"] ? { request: { gpus: Number(said["request.gpus"]) } } : {}),
    members: onlySaid(members),
  };
}

function onlySaid(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value.length));
}

// JSON's own scalars and lists are YAML's, too.
function yamlOf(manifest) {
  const lines = Object.entries(manifest).flatMap(([key, value]) => {
    if (typeof value !== "object") return [`${key}: ${scalar(value)}`];
    const inner = Object.entries(value).map(
      ([name, one]) => `  ${name}: ${Array.isArray(one) ? `[${one.map(scalar).join(", ")}]` : scalar(one)}`,
    );
    return inner.length ? [`${key}:`, ...inner] : [`${key}: {}`];
  });
  return `${lines.join("\n")}\n`;
}

function scalar(value) {
  return typeof value === "string" &&
    /^[A-Za-z][A-Za-z0-9 ./:_-]*$/.test(value) &&
    !/: |:$|^(true|false|null|yes|no|on|off|y|n)$/i.test(value)
    ? value.trim()
    : JSON.stringify(value);
}
