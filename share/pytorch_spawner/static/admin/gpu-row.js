// One GPU's row of the table, and what opens below it. It is changed in place, so that the focus,
// what is open and what is selected stay as they are.

import { h, renew, setText } from "../dom.js";
import { ago, exact, gib } from "../said.js";
import { sparkline } from "./charts.js";
import {
  METERS,
  holderName,
  holderPath,
  meterWords,
  modeToCome,
  modeWords,
  pinWords,
  searchable,
  stateOf,
  subjectWords,
  untilWords,
} from "./gpu-words.js";
import { menuButton } from "./ui.js";

const LIMITS = {
  utilisation: () => ({ min: 0, max: 100 }),
  memory_used_mib: ({ memory_mib: all }) => ({ min: 0, max: all, floor: 1024 }),
  temperature_c: () => ({ min: 20, max: 100 }),
  power_w: () => ({ min: 0, floor: 100 }),
};

// columns: [{label, class}], the same for the table's head.
export function columns(canAdmin) {
  const names = ["GPU", "Pool", "Mode", "Held by, since", ...METERS.map(({ label }) => label), "State"];
  return canAdmin ? [...names, "Actions"] : names;
}

// menu(gpu) gives the entries of "Actions"; now() is the service's clock.
export function makeRow(first, { config, menu, now }) {
  const row = { gpu: first, config, now, seen: {}, canAdmin: config.canAdmin };
  const cell = (label, ...children) =>
    h("td", { role: "cell", "data-label": label, class: classOf(label) }, ...children);
  const parts = (row.parts = {
    name: h("span", { class: "lab-gpu-model" }),
    uuid: h("span", { class: "lab-uuid" }),
    copy: h("button", { type: "button", class: "btn btn-sm lab-icon-button", "data-do": "copy" }, icon("copy")),
    pool: h("span", {}),
    mode: h("span", {}),
    toCome: h("span", { class: "lab-sub" }),
    holders: h("div", { class: "lab-holders" }),
    badge: h("span", { class: "badge" }),
    state: h("span", { class: "lab-sub" }),
    chevron: h("span", { "aria-hidden": "true", class: "lab-chevron" }, "▸"),
    number: h("span", {}),
  });
  parts.open = h(
    "button",
    { type: "button", class: "btn btn-link lab-open", "data-do": "open", "aria-expanded": "false" },
    parts.chevron,
    parts.number,
  );
  row.meters = METERS.map((meter) => makeMeter(meter, first));
  const actions = row.canAdmin ? makeActions(row, menu) : null;
  row.main = h(
    "tr",
    { role: "row", class: "lab-gpu-row" },
    h(
      "th",
      { scope: "row", role: "rowheader", "data-label": "GPU" },
      parts.open,
      parts.name,
      h("span", { class: "lab-sub text-nowrap" }, parts.uuid, parts.copy),
    ),
    cell("Pool", parts.pool),
    cell("Mode", parts.mode, parts.toCome),
    cell("Held by, since", parts.holders),
    ...row.meters.map(({ label, spark, said }) => cell(label, spark.node, said)),
    cell("State", parts.badge, parts.state),
    actions ? cell("Actions", actions) : null,
  );
  row.node = h("tbody", { role: "rowgroup", "data-uuid": first.uuid }, row.main);
  row.update = (gpu) => update(row, gpu);
  row.tick = () => tick(row);
  row.draw = (series, to) => drawMeters(row, series, to);
  row.toggle = (isOpen) => toggle(row, isOpen);
  row.remove = () => {
    for (const { spark } of row.meters) spark.remove();
    row.node.remove();
  };
  update(row, first);
  return row;
}

function classOf(label) {
  if (METERS.some((meter) => meter.label === label)) return "lab-meter-cell";
  return { Actions: "lab-actions-cell", State: "lab-state-cell" }[label] ?? null;
}

function icon(name) {
  return h("i", { class: `fa fa-${name}`, "aria-hidden": "true" });
}

function makeMeter(meter, gpu) {
  const spark = sparkline(LIMITS[meter.key](gpu));
  return { ...meter, spark, said: h("span", { class: "lab-value" }) };
}

function makeActions(row, menu) {
  const pin = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast", "data-do": "pin" }, "Pin…");
  const more = h(
    "button",
    { type: "button", class: "btn btn-sm btn-outline-contrast" },
    "⋯",
    h("span", { class: "lab-more-word" }, " Actions"),
  );
  menuButton(more, () => menu(row.gpu));
  Object.assign(row.parts, { pin, more });
  return h("div", { class: "lab-row-buttons" }, pin, more);
}

// ---- what the service told ----------------------------------------------------------------------

function update(row, gpu) {
  row.gpu = gpu;
  row.text = searchable(gpu);
  const { parts } = row;
  const name = `GPU ${gpu.index}`;
  setText(parts.number, name);
  label(parts.open, `Details of ${name}`);
  label(parts.copy, `Copy the UUID of ${name}`);
  if (row.canAdmin) {
    label(parts.pin, `Pin ${name}…`);
    label(parts.more, `Actions for ${name}`);
  }
  setText(parts.name, `${gpu.name || "unnamed"}${gpu.is_simulated ? " (simulated)" : ""}`);
  setText(parts.uuid, shortUuid(gpu.uuid), gpu.uuid);
  setText(parts.pool, gpu.pool);
  setText(parts.mode, modeWords(gpu.mode, gpu));
  setText(parts.toCome, modeToCome(gpu));
  const state = stateOf(gpu);
  setText(parts.badge, state.label);
  parts.badge.className = state.tone === "free" ? "badge lab-badge-free" : `badge text-bg-${state.tone}`;
  setText(parts.state, state.text);
  once(row, "holders", [gpu.holders, gpu.pins], () => parts.holders.replaceChildren(...holderLines(row)));
  updateMeters(row);
  if (row.details) updateDetails(row);
}

function label(button, text) {
  if (button.getAttribute("aria-label") !== text) button.setAttribute("aria-label", text);
}

// draw() only when what it draws is another than last time.
function once(row, name, value, draw) {
  const text = JSON.stringify(value);
  if (row.seen[name] === text) return;
  row.seen[name] = text;
  draw();
}

function shortUuid(uuid) {
  const short = uuid.replace(/^(GPU|MIG)-/, "");
  return short.length > 10 ? `${short.slice(0, 8)}…` : short;
}

function holderLines(row) {
  const { gpu, config } = row;
  const lines = gpu.holders.map((holder) =>
    h(
      "div",
      {},
      h("a", { href: `${config.labUrl}${holderPath(holder)}` }, holderName(holder)),
      holder.course ? ` · ${holder.course}` : "",
      gpu.slots > 1 && holder.slot !== null ? h("span", { class: "lab-quiet" }, ` · slot ${holder.slot + 1}`) : "",
      " ",
      since(holder.since, row.now()),
    ),
  );
  if (!lines.length) lines.push(h("div", { class: "lab-quiet" }, "nobody"));
  const pinned = pinWords(gpu);
  if (pinned) lines.push(h("div", { class: "lab-sub" }, pinned));
  return lines;
}

function since(at, now) {
  const attributes = {
    datetime: new Date(at * 1000).toISOString(),
    title: exact(at),
    class: "lab-since",
    "data-at": at,
  };
  return h("time", attributes, ago(at, now));
}

function tick(row) {
  const now = row.now();
  for (const time of row.node.querySelectorAll("time[data-at]"))
    setText(time, ago(Number(time.dataset.at), now), time.title);
}

function updateMeters({ meters, gpu }) {
  for (const meter of meters) {
    const said = meterWords(meter, gpu);
    setText(meter.said, said);
    meter.said.classList.toggle("lab-quiet", said === "unknown");
  }
}

function drawMeters({ meters }, series, to) {
  for (const { key, spark } of meters) spark.update(series.at, series[key], to);
}

// ---- what opens below it ------------------------------------------------------------------------

function toggle(row, isOpen = !row.details) {
  const { parts } = row;
  parts.open.setAttribute("aria-expanded", String(isOpen));
  parts.chevron.textContent = isOpen ? "▾" : "▸";
  if (!isOpen) {
    row.details?.node.remove();
    row.details = null;
    delete row.seen.details;
    return;
  }
  if (row.details) return;
  const body = h("div", { class: "lab-gpu-details" });
  const wide = h("td", { role: "cell", colspan: String(columns(row.canAdmin).length) }, body);
  row.details = { node: h("tr", { role: "row", class: "lab-details-row" }, wide), body };
  row.main.after(row.details.node);
  updateDetails(row);
}

function updateDetails(row) {
  const { gpu } = row;
  once(row, "details", { ...gpu, sample: null }, () =>
    renew(row.details.body, [
      section("On it now", ...leaseLines(row)),
      section("Processes", ...processLines(gpu)),
      section("The device", facts(gpu)),
    ]),
  );
}

function section(title, ...children) {
  return h("section", {}, h("h2", { class: "h6" }, title), ...children);
}

function leaseLines(row) {
  const { gpu, config } = row;
  if (!gpu.holders.length) return [h("p", { class: "lab-quiet" }, "Nobody holds it.")];
  return gpu.holders.map((holder) =>
    h(
      "div",
      { class: "lab-lease-line" },
      h("a", { href: `${config.labUrl}${holderPath(holder)}` }, holderName(holder)),
      ` · since ${exact(holder.since)}, ${untilWords(holder, row.now())}`,
      h("div", { class: "lab-sub" }, leaseFacts(gpu, holder)),
      row.canAdmin && holder.kept_until === null ? stopButton(holder) : null,
    ),
  );
}

function leaseFacts(gpu, { slot, grant, course, image }) {
  const parts = [
    slot !== null && gpu.slots > 1 ? `slot ${slot + 1} of ${gpu.slots}` : "",
    course ? `course ${course}` : "",
    grant ? `by grant ${grant}` : "",
    image ? `image ${image}` : "",
  ];
  return parts.filter(Boolean).join(" · ");
}

function stopButton(holder) {
  const name = `Stop server… of ${holderName(holder)}`;
  const style = "btn btn-sm btn-outline-danger mt-1";
  return h(
    "button",
    { type: "button", class: style, "data-do": "stop", "data-lease": holder.lease, "aria-label": name },
    "Stop server…",
  );
}

function processLines({ processes }) {
  if (!processes?.length) return [h("p", { class: "lab-quiet" }, "None is known.")];
  const line = ({ pid, name, used_mib: used, user, server, is_told }) =>
    h(
      "tr",
      {},
      h("td", { class: "lab-number" }, String(pid)),
      h("td", { class: "text-break" }, name || "unknown"),
      h("td", { class: "text-nowrap" }, used === null ? "unknown" : `${gib(used)} GiB`),
      h("td", {}, user ? holderName({ user, server }) : is_told ? h("strong", {}, "not of this lab") : "unknown whose"),
    );
  const heads = ["PID", "Name", "Memory", "Student"].map((name) => h("th", { scope: "col" }, name));
  return [
    h(
      "table",
      { class: "table table-sm lab-processes" },
      h("caption", { class: "visually-hidden" }, "Processes"),
      h("thead", {}, h("tr", {}, ...heads)),
      h("tbody", {}, ...processes.map(line)),
    ),
  ];
}

function facts(gpu) {
  const memory = gpu.memory_mib === null ? "unknown" : `${gib(gpu.memory_mib)} GiB`;
  const slots = gpu.slots > 1 ? ` (${gpu.slots} slots of ${gib(gpu.slot_memory_mib ?? null)} GiB)` : "";
  const rows = [
    ["UUID", h("code", {}, gpu.uuid)],
    ["Memory", memory + slots],
    ["Driver", gpu.driver || "unknown"],
    ["Compute capability", gpu.compute_capability?.join(".") || "unknown"],
    ["Pool", `${gpu.pool}${gpu.setting?.pool ? ", set here" : ", as configured"}`],
    ["Mode", `${modeWords(gpu.mode, gpu)}${gpu.setting?.mode ? ", set here" : ", as configured"}`],
    [
      "Pinned to",
      gpu.pins?.length ? gpu.pins.map((pin) => `${subjectWords(pin)} (grant ${pin.id})`).join(", ") : "nobody",
    ],
  ];
  return h(
    "dl",
    { class: "lab-facts-list" },
    ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}
