// "GPUs", the admin's front page: every GPU, who has it, how it does, and what needs the admin.

import { h, setText } from "../dom.js";
import { connectApi } from "./api.js";
import { WINDOW_S } from "./charts.js";
import { drain, menuOf, pin, returnToService, stopServer } from "./gpu-actions.js";
import { columns, makeRow } from "./gpu-row.js";
import { METERS, holderName } from "./gpu-words.js";
import { fromAddress, searchBox, stateBox, toAddress } from "./list-page.js";
import { follow } from "./live.js";
import { toast } from "./ui.js";

const DEFAULTS = { search: "", pool: "" };
const REDRAW_MS = 1000;
const TICK_MS = 10_000;
const STREAM_PATIENCE_MS = 4000;
const MOST_NEEDS = 5;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = {
    config,
    api: connectApi(config),
    choice: fromAddress(DEFAULTS),
    rows: new Map(), // uuid -> row, which holds its gpu
    series: new Map(), // uuid -> {at, utilisation, ...}: the last 15 minutes
    reason: "",
    meter: { source: "driver", reason: "" },
    hasRows: false,
    isDrawing: false,
  };
  page.merge = (gpu) => {
    if (gpu) takeRows(page, [gpu]);
  };
  page.gpus = () => [...page.rows.values()].map(({ gpu }) => gpu);
  mount(page, root);
  page.live = follow(config, {
    snapshot: (data) => takeSnapshot(page, data),
    gpus: ({ gpus, gone, meter, reason }) => {
      page.meter = meter ?? page.meter;
      page.reason = reason ?? page.reason;
      takeRows(page, gpus, gone);
    },
    samples: (data) => takeSamples(page, data),
  });
  setInterval(() => tick(page), TICK_MS);
  page.state.loading("Looking for the GPUs…");
  // Where something holds the stream back, the table comes without it.
  setTimeout(() => page.hasRows || load(page), STREAM_PATIENCE_MS);
}

async function load(page) {
  try {
    const { data } = await page.api.call("GET", "gpus");
    if (!page.hasRows) takeSnapshot(page, data);
  } catch (error) {
    if (!page.hasRows) page.state.trouble(error);
  }
}

// ---- frame --------------------------------------------------------------------------------------

function mount(page, root) {
  const { config, choice } = page;
  const search = searchBox({
    label: "Search",
    value: choice.search,
    placeholder: "A GPU, user, course or state",
    onInput: (text) => choose(page, { search: text }),
  });
  page.search = search.input;
  page.pool = h("select", { class: "form-select", id: "pool" });
  page.pool.addEventListener("change", () => choose(page, { pool: page.pool.value }));
  const pools = h("div", {}, h("label", { for: "pool", class: "form-label" }, "Pool"), page.pool);
  page.tools = h("div", { class: "lab-tools", hidden: true }, search.node, pools);
  page.shown = h("p", { class: "lab-quiet mb-2", role: "status" });
  page.needs = h("section", { class: "lab-needs", "aria-label": "Needs you", hidden: true });
  page.note = h("p", { class: "lab-quiet" });
  page.empty = h("div", { class: "lab-empty", hidden: true });
  page.state = stateBox(() => load(page));
  const heads = columns(config.canAdmin).map((name) => h("th", { scope: "col", role: "columnheader" }, name));
  page.table = h(
    "table",
    { class: "table lab-gpus", role: "table", hidden: true },
    h("caption", { class: "visually-hidden" }, "GPUs"),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)),
  );
  setText(page.note, "");
  const frame = [page.needs, page.tools, page.shown, page.state.node, page.empty, page.table, page.note];
  root.append(h("h1", { class: "visually-hidden" }, "GPUs"), ...frame);
  const act = (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) clicked(page, button);
  };
  page.table.addEventListener("click", act);
  page.needs.addEventListener("click", act);
}

function clicked(page, button) {
  const uuid = button.closest("[data-uuid]").dataset.uuid;
  const row = page.rows.get(uuid);
  if (!row) return;
  const { gpu } = row;
  const actions = {
    open: () => row.toggle(),
    copy: () => copy(gpu),
    pin: () => pin(page, gpu, button),
    drain: () => drain(page, gpu, row.parts.more),
    return: () => returnToService(page, gpu, row.parts.more),
    show: () => show(page, row),
    stop: () => {
      const holder = gpu.holders.find(({ lease }) => lease === button.dataset.lease);
      if (holder) stopServer(page, gpu, holder, button);
    },
  };
  actions[button.dataset.do]();
}

async function copy({ uuid, index }) {
  try {
    await navigator.clipboard.writeText(uuid);
    toast(`Copied the UUID of GPU ${index}.`);
  } catch {
    // Browsers give the clipboard to https and localhost only.
    toast(`The browser does not let this page copy; here it is: ${uuid}`);
  }
}

function show(page, row) {
  choose(page, { search: "", pool: "" });
  row.toggle(true);
  row.node.scrollIntoView({ block: "center" });
  row.parts.open.focus({ preventScroll: true });
}

// ---- what the service told ----------------------------------------------------------------------

function takeSnapshot(page, { gpus, meter, reason }) {
  page.hasRows = true;
  page.reason = reason ?? "";
  page.meter = meter ?? page.meter;
  page.state.clear();
  const there = new Set(gpus.map(({ uuid }) => uuid));
  takeRows(
    page,
    gpus,
    [...page.rows.keys()].filter((uuid) => !there.has(uuid)),
  );
  loadHistory(page);
}

// Rows that changed; one without `sample` keeps the one it has.
function takeRows(page, gpus, gone = []) {
  for (const uuid of gone) {
    page.rows.get(uuid)?.remove();
    page.rows.delete(uuid);
    page.series.delete(uuid);
  }
  for (const gpu of gpus) {
    const row = page.rows.get(gpu.uuid);
    const sample = gpu.sample === undefined ? (row?.gpu.sample ?? null) : gpu.sample;
    if (row) row.update({ ...gpu, sample });
    else addRow(page, { ...gpu, sample });
  }
  drawFrame(page);
}

function addRow(page, gpu) {
  const row = makeRow(gpu, {
    config: page.config,
    now: () => page.live?.now() ?? Date.now() / 1000,
    menu: (now) => menuOf(page, now, row.parts.more),
  });
  const order = (one) => [one.index, one.uuid];
  const isAfter = (one) => compare(order(one.gpu), order(gpu)) > 0;
  const next = [...page.rows.values()].filter(isAfter).sort((a, b) => compare(order(a.gpu), order(b.gpu)))[0];
  page.rows.set(gpu.uuid, row);
  page.table.insertBefore(row.node, next?.node ?? null);
}

function compare([index, uuid], [otherIndex, otherUuid]) {
  return index - otherIndex || (uuid < otherUuid ? -1 : uuid > otherUuid ? 1 : 0);
}

async function loadHistory(page) {
  try {
    const { data } = await page.api.call("GET", "gpus/history");
    for (const [uuid, past] of Object.entries(data.gpus)) {
      const series = { at: [...data.at] };
      for (const { key } of METERS) series[key] = [...(past[key] ?? data.at.map(() => null))];
      page.series.set(uuid, series);
    }
    drawCharts(page);
  } catch {
    // The charts begin with what comes from now on.
  }
}

// A row that did not change is not told: its last values hold.
function takeSamples(page, { at, rows }) {
  for (const [uuid, row] of page.rows) {
    const { gpu } = row;
    if (uuid in rows) {
      const values = rows[uuid] ?? [];
      const sample = { at };
      METERS.forEach(({ key }, place) => (sample[key] = values[place] ?? null));
      row.update({ ...gpu, sample });
    }
    remember(page, uuid, at, row.gpu.sample);
  }
  soon(page);
}

function remember(page, uuid, at, sample) {
  if (!page.series.has(uuid))
    page.series.set(uuid, { at: [], ...Object.fromEntries(METERS.map(({ key }) => [key, []])) });
  const series = page.series.get(uuid);
  if (at <= series.at.at(-1)) return;
  const old = series.at.findIndex((time) => time >= at - WINDOW_S);
  for (const values of Object.values(series)) values.splice(0, Math.max(0, old - 1));
  series.at.push(at);
  for (const { key } of METERS) series[key].push(sample?.[key] ?? null);
}

// ---- drawing ------------------------------------------------------------------------------------

function soon(page) {
  if (page.isDrawing) return;
  page.isDrawing = true;
  setTimeout(() => {
    page.isDrawing = false;
    requestAnimationFrame(() => drawCharts(page));
  }, REDRAW_MS);
}

function drawCharts(page) {
  const to = page.live.now();
  for (const [uuid, row] of page.rows) {
    const series = page.series.get(uuid);
    if (series) row.draw(series, Math.max(to, series.at.at(-1) ?? 0));
  }
}

function tick(page) {
  for (const [uuid, row] of page.rows) {
    row.tick();
    // What is not told holds: otherwise a jump after a quiet while is drawn as a slope.
    if (row.gpu.sample) remember(page, uuid, page.live.now(), row.gpu.sample);
  }
  drawCharts(page);
}

function drawFrame(page) {
  const count = page.rows.size;
  page.tools.hidden = page.table.hidden = count === 0;
  page.empty.hidden = count > 0;
  if (count === 0) drawEmpty(page);
  const isUnmeasured = count > 0 && page.meter.source === "none";
  setText(page.note, isUnmeasured ? `Nothing is measured. ${page.meter.reason}`.trim() : "");
  drawPools(page);
  drawNeeds(page);
  filter(page);
}

function drawEmpty({ empty, reason }) {
  empty.replaceChildren(
    h("p", { class: "lead mb-1" }, "The lab sees no GPU."),
    h("p", { class: "mb-1" }, reason || "The hub has not told yet what it found."),
    h(
      "p",
      { class: "lab-quiet" },
      "Run ",
      h("code", {}, "pytorch-spawner doctor"),
      " on the hub's machine: it asks the driver and the engine, and says what each answers. This page shows a GPU as soon as there is one.",
    ),
  );
}

function drawPools({ pool, rows, choice }) {
  const names = [...new Set([...rows.values()].map(({ gpu }) => gpu.pool))].sort();
  const wanted = names.join("\n");
  if (pool.dataset.names === wanted) return;
  pool.dataset.names = wanted;
  pool.replaceChildren(
    h("option", { value: "" }, "All pools"),
    ...names.map((name) => h("option", { value: name }, name)),
  );
  if (!names.includes(choice.pool)) choice.pool = "";
  pool.value = choice.pool;
}

// ---- what needs the admin -----------------------------------------------------------------------

function drawNeeds(page) {
  const gpus = page.gpus().sort((one, other) => one.index - other.index);
  const needing = [...gpus.filter(({ health }) => health), ...gpus.filter(({ health, drained }) => drained && !health)];
  const wanted = JSON.stringify(
    needing.map(({ uuid, index, name, health, drained, holders }) => [uuid, index, name, health, drained, holders]),
  );
  if (page.needs.dataset.shown === wanted) return;
  page.needs.dataset.shown = wanted;
  page.needs.hidden = needing.length === 0;
  const focused = page.needs.contains(document.activeElement)
    ? document.activeElement.getAttribute("aria-label")
    : null;
  const lines = needing.map((gpu) => needLine(gpu, page.config.canAdmin));
  const rest = lines.splice(MOST_NEEDS);
  const more = rest.length ? h("details", {}, h("summary", {}, `${rest.length} more`), ...rest) : "";
  page.needs.replaceChildren(...lines, more);
  if (focused) page.needs.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function needLine(gpu, canAdmin) {
  const name = `GPU ${gpu.index}`;
  const holders = gpu.holders.length ? `Held by ${gpu.holders.map(holderName).join(", ")}.` : "Held by nobody.";
  const said = gpu.health ? stop(gpu.health) : `is drained: ${stop(gpu.drained)}`;
  const button = (action, label) =>
    h(
      "button",
      {
        type: "button",
        class: "btn btn-sm btn-outline-contrast",
        "data-do": action,
        "aria-label": `${label} (${name})`,
      },
      label,
    );
  return h(
    "div",
    { class: `alert alert-${gpu.health ? "danger" : "warning"} lab-need`, "data-uuid": gpu.uuid },
    h(
      "span",
      { class: "lab-need-words" },
      h("strong", {}, `${name} (${gpu.name || "unnamed"})`),
      gpu.health ? ": " : " ",
      said,
      " ",
      holders,
    ),
    h(
      "span",
      { class: "lab-need-buttons" },
      button("show", "Show"),
      canAdmin ? (gpu.drained ? button("return", "Return to service…") : button("drain", "Drain…")) : "",
    ),
  );
}

function stop(sentence) {
  return /[.!?…]$/.test(sentence) ? sentence : `${sentence}.`;
}

// ---- searching ----------------------------------------------------------------------------------

function choose(page, change) {
  Object.assign(page.choice, change);
  toAddress(page.choice, DEFAULTS);
  // Not while it is typed: a space at the end would be lost.
  if (page.search.value.trim() !== page.choice.search) page.search.value = page.choice.search;
  page.pool.value = page.choice.pool;
  filter(page);
}

function filter({ rows, choice, shown }) {
  const words = choice.search.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows.values()) {
    const isShown = (!choice.pool || row.gpu.pool === choice.pool) && words.every((word) => row.text.includes(word));
    row.node.hidden = !isShown;
    count += isShown;
  }
  const isAll = count === rows.size;
  setText(shown, isAll ? "" : count ? `${count} of ${rows.size} GPUs` : "No GPU matches. Clear the search to see all.");
}

start(document.getElementById("admin"));
