// "Courses": is my course ready for nine o'clock? For students: their courses, one click away.

import { h, renew } from "../dom.js";
import { connectApi } from "./api.js";
import { courseCard, memberCard } from "./course-card.js";
import { openForm, openYaml } from "./course-edit.js";
import { openLink } from "./course-link.js";
import { openReset } from "./course-students.js";
import { openTimetable } from "./course-timetable.js";
import { short, untriedStep } from "./course-words.js";
import { guarded, loader, renewNamed, stateBox } from "./list-page.js";
import { follow } from "./live.js";
import { plural } from "../said.js";
import { confirmDialog, toast } from "./ui.js";

// A preload says something every few seconds; else things change when somebody acts.
const BUSY_MS = 2000;
const CALM_MS = 10_000;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = { config, api: connectApi(config), courses: new Map(), mine: [], opened: new Map(), timer: 0 };
  page.state = stateBox(() => page.load());
  page.note = h("div", {});
  page.cards = h("div", {});
  page.others = h("div", {});
  page.load = loader({
    api: page.api,
    state: page.state,
    path: () => "courses",
    draw: (data) => take(page, data),
    saying: "Looking for courses…",
  });
  const add = h("button", { type: "button", class: "btn btn-primary", "data-do": "add" }, "Add a course…");
  root.append(
    h("div", { class: "lab-heading" }, h("h1", { class: "h3" }, "Courses"), config.canInstruct ? add : ""),
    page.state.node,
    page.note,
    page.cards,
    page.others,
  );
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(page, button);
  });
  document.addEventListener("visibilitychange", () => document.hidden || look(page));
  if (config.canView) follow(config, {});
  page.load().then(() => wait(page));
}

function wait(page) {
  clearTimeout(page.timer);
  const isBusy = [...page.courses.values()].some(({ task }) => task);
  page.timer = setTimeout(() => look(page), isBusy ? BUSY_MS : CALM_MS);
}

async function look(page) {
  clearTimeout(page.timer);
  if (!document.hidden) {
    await page.load({ quiet: true });
    const names = [...page.opened.keys()].filter((name) => page.courses.has(name));
    const again = (name) => [...page.opened.get(name).keys()].map((what) => read(page, name, what, { quiet: true }));
    await Promise.all(names.flatMap(again));
  }
  wait(page);
}

// ---- showing ------------------------------------------------------------------------------------

function take(page, { courses, mine, note }) {
  page.courses = new Map(courses.map((course) => [course.name, course]));
  page.mine = mine.filter(({ name }) => !page.courses.has(name));
  page.said = note;
  draw(page);
}

function draw(page) {
  const { config, opened } = page;
  const courses = [...page.courses.values()].sort(bySession);
  renew(page.note, page.said ? [h("p", { class: "alert alert-warning" }, page.said)] : []);
  const cards = courses.map((course) => courseCard(course, opened.get(course.name), config));
  renewNamed(page.cards, cards.length ? cards : config.canInstruct ? [emptyState()] : []);
  const heading = config.canInstruct
    ? h("h2", { class: "h5 mt-4" }, "Courses you take part in")
    : h("h2", { class: "visually-hidden" }, "Your courses");
  if (page.mine.length) renewNamed(page.others, [heading, ...page.mine.map(memberCard)]);
  else renew(page.others, config.canInstruct ? [] : [noCourse()]);
}

// What is needed first comes first.
function bySession(one, other) {
  const at = ({ sessions }) => sessions[0]?.starts_at ?? Infinity;
  const [mine, theirs] = [at(one), at(other)];
  return mine === theirs ? one.title.localeCompare(other.title) : mine - theirs;
}

function emptyState() {
  const example = h(
    "button",
    { type: "button", class: "btn btn-primary", "data-do": "example" },
    "Add the example course",
  );
  const add = h(
    "button",
    { type: "button", class: "btn btn-outline-contrast", "data-do": "add" },
    "Add a course of your own…",
  );
  return h(
    "div",
    { class: "lab-empty mb-4" },
    h("p", {}, h("strong", {}, "You look after no course yet.")),
    h(
      "p",
      {},
      "A course is one manifest: where the notebooks are, the image, the GPU, and who belongs to it. ",
      "The lab fetches and checks the notebooks, ",
      "runs them once as a student would and compiles what they need beforehand. A student then starts with everything in place.",
    ),
    h("p", { class: "lab-chips" }, example, add),
  );
}

function noCourse() {
  return h(
    "div",
    { class: "lab-empty" },
    h("p", {}, h("strong", {}, "You belong to no course yet.")),
    h(
      "p",
      {},
      "Whoever teaches it can add you, by your name or a group of yours; then it is here. Your server works without a course, too.",
    ),
  );
}

// ---- what is unfolded ---------------------------------------------------------------------------

function toggle(page, { name }, what) {
  const open = page.opened.get(name) ?? new Map();
  page.opened.set(name, open);
  if (open.delete(what)) return draw(page);
  open.set(what, null);
  draw(page);
  return read(page, name, what);
}

// quiet: looked at again; the page's own load says that the lab is away, and that it is back.
async function read(page, name, what, { quiet = false } = {}) {
  try {
    const { data } = await page.api.call("GET", what === "students" ? `courses/${name}/students` : `courses/${name}`);
    const open = page.opened.get(name);
    if (!open?.has(what)) return;
    open.set(what, what === "students" ? data : data.course);
    draw(page);
  } catch (error) {
    if (!quiet) page.state.refused(error, "");
  }
}

// ---- acting -------------------------------------------------------------------------------------

const ACTIONS = { timetable, link, edit, remove, preload, publish, stop, reset };

function act(page, { dataset }) {
  if (dataset.do === "add") return addByForm(page);
  if (dataset.do === "example") return addExample(page);
  const course = page.courses.get(dataset.key);
  if (!course) return undefined;
  if (["students", "details"].includes(dataset.do)) return toggle(page, course, dataset.do);
  return ACTIONS[dataset.do](page, course, dataset);
}

function addByForm(page) {
  openForm({
    user: page.config.user,
    save: (body) => add(page, body),
    asYaml: (text) =>
      openYaml({ user: page.config.user, text, labUrl: page.config.labUrl, save: (body) => add(page, body) }),
  });
}

async function add(page, body) {
  const { data } = await page.api.call("POST", "courses", { body });
  toast(data.sentence);
  await look(page);
}

function addExample(page) {
  return guarded(page, "example", () => add(page, { example: true }));
}

function edit(page, { name }) {
  return guarded(page, "panel", async () => {
    const { data } = await page.api.call("GET", `courses/${name}`);
    openYaml({
      user: page.config.user,
      course: data.course,
      labUrl: page.config.labUrl,
      async save(body, etag) {
        const { data: answer } = await page.api.call("PUT", `courses/${name}`, { body, etag });
        toast(answer.sentence);
        await look(page);
      },
    });
  });
}

function timetable(page, { name }) {
  return guarded(page, "panel", async () => {
    const again = async () => (await page.api.call("GET", `courses/${name}`)).data.course;
    openTimetable({
      course: await again(),
      async save(body, etag) {
        await page.api.call("PUT", `courses/${name}`, { body, etag });
        look(page);
        return again();
      },
      async take(body, etag) {
        const { data } = await page.api.call("POST", `courses/${name}/timetable`, { body, etag });
        look(page);
        return { ...data, course: await again() };
      },
    });
  });
}

function link(_, course) {
  openLink(course);
}

function preload(page, { name }) {
  return done(page, `courses/${name}/preload`);
}

async function publish(page, course) {
  const { name, candidate, published, students, steps, content_etag: etag } = course;
  const failed = steps.find(({ state }) => state === "failed");
  const untried = untriedStep(course);
  const says = candidate.says ? `“${candidate.says}” ` : "";
  const instead = published.commit ? ` in the place of ${short(published.commit)}` : "";
  const text = [
    `${short(candidate.commit)} ${says}goes out${instead}: running servers get it within seconds, all others at their next start.`,
    "What students changed themselves is kept.",
    untried ? `It was not tried to the end: the last preload was given up at: ${untried.label}. ${untried.message}` : "",
    failed && !untried ? `The last preload failed at: ${failed.label}. ${failed.message}` : "",
  ];
  const isSure = await confirmDialog({
    title: `Publish ${short(candidate.commit)} to ${plural(students.total, "student")}?`,
    text: text.filter(Boolean).join(" "),
    label: "Publish",
    danger: Boolean(failed || untried),
  });
  if (isSure) await done(page, `courses/${name}/publish`, { etag });
}

async function stop(page, { name, title, task }) {
  const isSure = await confirmDialog({
    title: `Stop the ${task === "publish" ? "publication" : "preload"} of ${title}?`,
    text: "What it did so far is lost; what students have stays as it is.",
    label: "Stop it",
    danger: true,
  });
  if (isSure) await done(page, `courses/${name}/stop`);
}

async function remove(page, { name, title, etag }) {
  const isSure = await confirmDialog({
    title: `Remove ${title}?`,
    text: [
      "Nobody can start it any more, and what is known of its students' copies is forgotten; its warm caches go.",
      "The files in their homes stay. Download its manifest first (under Details) if you may want it back.",
    ].join(" "),
    label: "Remove",
    danger: true,
  });
  if (!isSure) return;
  await guarded(page, `remove ${name}`, async () => {
    await page.api.call("DELETE", `courses/${name}`, { etag });
    page.opened.delete(name);
    await look(page);
    toast(`Removed: ${title}.`);
  });
}

function reset(page, { name, title }, { user }) {
  const row = page.opened
    .get(name)
    ?.get("students")
    ?.students.find((one) => one.user === user);
  if (!row) return;
  openReset({
    title,
    row,
    async save(body) {
      const { data } = await page.api.call("POST", `courses/${name}/reset`, { body });
      await read(page, name, "students", { quiet: true });
      return data.sentence;
    },
  });
}

function done(page, path, options = {}) {
  return guarded(page, path, async () => {
    const { data } = await page.api.call("POST", path, options);
    toast(data.sentence);
    await look(page);
  });
}

start(document.getElementById("admin"));
