// "Warm caches": what starts are given for which image, GPU and course; builds, live, and their logs.

import { h, renew } from "../dom.js";
import { connectApi } from "./api.js";
import { openBuild } from "./cache-build.js";
import { buildCard, cacheTable } from "./cache-table.js";
import { isRunning, nameOf } from "./cache-words.js";
import { guarded, loader, renewNamed, stateBox } from "./list-page.js";
import { follow } from "./live.js";
import { confirmDialog, toast } from "./ui.js";

// A build says something every few seconds; else things change when somebody acts.
const BUSY_MS = 2000;
const CALM_MS = 10_000;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = { config, api: connectApi(config), rows: new Map(), opened: new Map(), timer: 0 };
  page.state = stateBox(() => page.load());
  page.builds = section("Builds under way");
  page.current = section("What starts are given");
  page.earlier = section("Kept and failed");
  page.gone = section("Gone");
  page.empty = h("div", {});
  const build = h("button", { type: "button", class: "btn btn-primary" }, "Build a warm cache…");
  build.addEventListener("click", () => ask(page, null));
  page.load = loader({
    api: page.api,
    state: page.state,
    path: () => "caches",
    draw: (data) => take(page, data.caches),
    saying: "Looking for warm caches…",
  });
  root.append(
    h("div", { class: "lab-heading" }, h("h1", { class: "h3" }, "Warm caches"), config.canInstruct ? build : ""),
    page.state.node,
    page.empty,
    ...[page.builds, page.current, page.earlier, page.gone].map(({ node }) => node),
  );
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(page, button.dataset.do, page.rows.get(button.dataset.key));
  });
  document.addEventListener("visibilitychange", () => document.hidden || look(page));
  if (config.canView) follow(config, {});
  page.load().then(() => wait(page));
}

function section(title) {
  const out = h("div", {});
  const node = h("section", { class: "mb-4" }, h("h2", { class: "h5" }, title), out);
  node.hidden = true;
  return { node, out };
}

function wait(page) {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => look(page), [...page.rows.values()].some(isRunning) ? BUSY_MS : CALM_MS);
}

async function look(page) {
  clearTimeout(page.timer);
  if (!document.hidden) {
    await page.load({ quiet: true });
    const running = [...page.opened.keys()].filter((id) => page.rows.has(id) && isRunning(page.rows.get(id)));
    await Promise.all(running.map((id) => readLog(page, id, { quiet: true })));
  }
  wait(page);
}

// ---- showing ------------------------------------------------------------------------------------

function take(page, rows) {
  page.rows = new Map(rows.map((row) => [row.id, row]));
  draw(page);
}

function draw(page) {
  const rows = [...page.rows.values()];
  const running = rows.filter(isRunning).reverse(); // the oldest is built first
  const current = rows.filter((row) => row.is_current);
  const gone = rows.filter((row) => row.state === "expired");
  const others = rows.filter((row) => !isRunning(row) && !row.is_current && !gone.includes(row));
  const { opened, config } = page;
  const table = (some, caption) => cacheTable({ rows: some, caption, opened, config });
  fill(page.builds, running.map((row) => buildCard(row, opened, config)));
  fill(page.current, current.length ? [table(current, "What starts are given")] : []);
  fill(page.earlier, others.length ? [table(others, "Kept and failed")] : []);
  const summary = h("summary", { class: "mb-2" }, `${gone.length} whose files are gone; they can be built again`);
  fill(page.gone, gone.length ? [h("details", { "data-key": "gone" }, summary, table(gone, "Gone"))] : []);
  renew(page.empty, current.length ? [] : [emptyState(rows.length > 0)]);
}

function fill({ node, out }, children) {
  renewNamed(out, children);
  node.hidden = children.length === 0;
}

function emptyState(hasOthers) {
  const first = hasOthers ? "Starts are given no warm cache now." : "There is no warm cache yet.";
  return h(
    "div",
    { class: "lab-empty mb-4" },
    h("p", {}, h("strong", {}, first)),
    h(
      "p",
      {},
      "A warm cache holds what torch.compile makes of a course's models. The lab compiles it once, in a container of its own, ",
      "proves in a second one that it is found and faster, and then gives it to every server with the same image and GPU: ",
      "a student's first compiled step takes seconds, not most of a minute.",
    ),
  );
}

// ---- details ------------------------------------------------------------------------------------

function open(page, { id }) {
  if (page.opened.delete(id)) return draw(page);
  page.opened.set(id, null);
  draw(page);
  return readLog(page, id);
}

// quiet: looked at again; the page's own load says that the lab is away, and that it is back.
async function readLog(page, id, { quiet = false } = {}) {
  try {
    const { data } = await page.api.call("GET", `caches/${id}`);
    if (!page.opened.has(id)) return;
    page.opened.set(id, data.cache);
    draw(page);
  } catch (error) {
    if (!quiet) page.state.refused(error, "");
  }
}

// ---- acting -------------------------------------------------------------------------------------

function act(page, action, row) {
  if (!row) return undefined;
  if (action === "open") return open(page, row);
  if (action === "again") return ask(page, row);
  if (action === "stop") return stop(page, row);
  if (action === "remove") return remove(page, row);
  return give(page, action, row);
}

async function ask(page, again) {
  await guarded(page, "panel", async () => {
    const { data: choices } = await page.api.call("GET", "caches/choices");
    openBuild({
      choices,
      again,
      async save(body) {
        const { data } = await page.api.call("POST", "caches", { body });
        toast(`Asked for: ${nameOf(data.cache)}.`);
        await look(page);
      },
    });
  });
}

// Promote or roll back; both can be taken back.
async function give(page, action, row) {
  await guarded(page, `${action} ${row.id}`, async () => {
    const { data } = await page.api.call("POST", `caches/${row.id}/${action}`, { etag: row.etag });
    await page.load({ quiet: true });
    const done = action === "promote" ? "Promoted" : "Rolled back";
    toast(`${done}: ${nameOf(row)}. ${data.sentence}`, { undo: () => takeBack(page, action, data) });
  });
}

// The log's undo is an admin's; the opposite is anybody's who may do the one.
async function takeBack(page, action, { cache, change }) {
  if (page.config.canAdmin) await page.api.call("POST", `log/${change}/undo`);
  else {
    const opposite = action === "promote" ? "rollback" : "promote";
    await page.api.call("POST", `caches/${cache.id}/${opposite}`, { etag: cache.etag });
  }
  await page.load({ quiet: true });
}

async function stop(page, row) {
  const isSure = await confirmDialog({
    title: `Stop the build of ${nameOf(row)}?`,
    text: "What it compiled so far is lost, and its GPU is free again. What starts are given now stays.",
    label: "Stop it",
    danger: true,
  });
  if (!isSure) return;
  await guarded(page, `stop ${row.id}`, async () => {
    await page.api.call("POST", `caches/${row.id}/stop`);
    await look(page);
    toast(`The build of ${nameOf(row)} is asked to stop.`);
  });
}

async function remove(page, row) {
  const given = row.is_current ? "Starts are given what was promoted before it, or none. " : "";
  const isSure = await confirmDialog({
    title: `Remove ${nameOf(row)}?`,
    text: `${given}Its files are deleted once no server uses them. It cannot be brought back, only built again.`,
    label: "Remove",
    danger: true,
  });
  if (!isSure) return;
  await guarded(page, `remove ${row.id}`, async () => {
    await page.api.call("DELETE", `caches/${row.id}`, { etag: row.etag });
    await page.load({ quiet: true });
    toast(`Removed: ${nameOf(row)}.`);
  });
}

start(document.getElementById("admin"));
