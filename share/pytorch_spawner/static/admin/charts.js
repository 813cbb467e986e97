// Charts by uPlot (npm, copied to vendor/ by share/setup/assets). Without it: text. The numbers
// always stand beside as text, so a chart is decoration to a screen reader.

import { h } from "../dom.js";

export const WINDOW_S = 900;
const BARS = "▁▂▃▄▅▆▇█";
const TEXT_POINTS = 16;
const BAR_HEIGHT = 220;

let library = null;
const drawn = new Set(); // every uPlot that is on the page: to be drawn anew in other colours

// uPlot, or null where it was not copied; asked for once.
function load() {
  library ??= import("../vendor/uPlot.esm.js").then(
    (module) => {
      const address = new URL("../vendor/uPlot.min.css", import.meta.url).href;
      document.head.append(h("link", { rel: "stylesheet", href: address }));
      return module.default;
    },
    () => null,
  );
  return library;
}

// ---- colours ------------------------------------------------------------------------------------

function colour(name, element = document.documentElement) {
  return getComputedStyle(element).getPropertyValue(name).trim() || "gray";
}

function faint(name) {
  return `rgba(${colour(`${name}-rgb`)}, 0.18)`;
}

// The hub's theme switch changes an attribute; a canvas does not follow by itself.
new MutationObserver(() => {
  for (const plot of drawn) {
    if (plot.root.isConnected) plot.redraw(false, true);
    else forget(plot);
  }
}).observe(document.documentElement, { attributes: true, attributeFilter: ["data-bs-theme"] });

function forget(plot) {
  drawn.delete(plot);
  plot.destroy();
}

// ---- a line of the last 15 minutes --------------------------------------------------------------

// Only what is on the screen is drawn: 64 GPUs have 256 of them.
const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const spark = sparks.get(target);
      if (!spark) continue;
      spark.isSeen = isIntersecting;
      if (isIntersecting) drawSpark(spark);
    }
  },
  { rootMargin: "200px" },
);
const sparks = new WeakMap();

// A small line without axes: {node, update(at, values, to), remove()}. min and max: the values at
// the lower and the upper edge; max null: as high as the highest value, floor at least. at: unix
// seconds; values: numbers or null (a gap); to: the time at the right edge.
export function sparkline({ min = 0, max = null, floor = 1 } = {}) {
  const node = h("span", { class: "lab-sparkline", "aria-hidden": "true" });
  const spark = { node, min, max, floor, plot: null, isSeen: false, isStale: false, at: [], values: [], to: 0 };
  sparks.set(node, spark);
  seen.observe(node);
  return {
    node,
    update(at, values, to) {
      Object.assign(spark, { at, values, to, isStale: true });
      if (spark.isSeen) drawSpark(spark);
    },
    remove() {
      seen.unobserve(node);
      if (spark.plot) forget(spark.plot);
      spark.plot = null;
    },
  };
}

async function drawSpark(spark) {
  if (!spark.isStale) return;
  const Plot = await load();
  if (!spark.isStale || !spark.node.isConnected) return;
  spark.isStale = false;
  if (!Plot) {
    spark.node.classList.add("lab-spark");
    spark.node.textContent = asText(spark);
    return;
  }
  const { clientWidth: width, clientHeight: height } = spark.node;
  if (!width) return;
  if (!spark.plot) {
    spark.plot = new Plot(sparkOptions(spark, width, height), [spark.at, spark.values], spark.node);
    drawn.add(spark.plot);
    return;
  }
  if (spark.plot.width !== width) spark.plot.setSize({ width, height });
  spark.plot.setData([spark.at, spark.values]);
}

function topOf({ max, floor, values }) {
  return max ?? Math.max(floor, ...values.filter((value) => value !== null)) * 1.05;
}

function sparkOptions(spark, width, height) {
  return {
    width,
    height,
    legend: { show: false },
    cursor: { show: false },
    select: { show: false },
    padding: [2, 0, 2, 0],
    axes: [{ show: false }, { show: false }],
    scales: {
      x: { time: false, range: () => [spark.to - WINDOW_S, spark.to] },
      y: { range: () => [spark.min, topOf(spark)] },
    },
    series: [
      {},
      {
        width: 1.5,
        stroke: () => colour("--bs-link-color"),
        fill: () => faint("--bs-link-color"),
        points: { show: false },
      },
    ],
  };
}

function asText(spark) {
  const known = spark.values.filter((value) => value !== null).slice(-TEXT_POINTS);
  const top = topOf(spark);
  return known.map((value) => BARS[step(value, spark.min, top)]).join("");
}

function step(value, min, max) {
  const part = max > min ? (value - min) / (max - min) : 0;
  return Math.max(0, Math.min(BARS.length - 1, Math.floor(part * BARS.length)));
}

// ---- hours by day -------------------------------------------------------------------------------

// Bars of each day: what was held, and in front of it the part of it that was busy. days: ISO
// dates; held: hours; busy: hours or null (not measured). The table beside it says the same.
export async function barChart(container, { days, held, busy }) {
  const said = h("span", { class: "lab-quiet" });
  const isMeasured = busy.some((value) => value !== null);
  const legend = h(
    "div",
    { class: "lab-legend" },
    h("span", { class: "lab-swatch lab-swatch-held" }, "held, hours"),
    h("span", { class: isMeasured ? "lab-swatch lab-swatch-busy" : "d-none" }, "busy, hours"),
    said,
  );
  const place = h("div", { class: "lab-bars" });
  container.replaceChildren(legend, place);
  container.setAttribute("aria-hidden", "true");
  const Plot = await load();
  if (!place.isConnected) return;
  if (!Plot) {
    const spark = { values: held, min: 0, max: null, floor: 1 };
    place.append(h("span", { class: "lab-spark" }, held.map((value) => BARS[step(value, 0, topOf(spark))]).join("")));
    return;
  }
  const sayDay = (at) => {
    const parts = at === null || at === undefined ? [] : [`${longDay(days[at])}: held ${hours(held[at])}`];
    if (parts.length && isMeasured) parts.push(busy[at] === null ? "busy not measured" : `busy ${hours(busy[at])}`);
    said.textContent = parts.join(", ");
  };
  const options = barOptions(Plot, { days, width: place.clientWidth, isMeasured, sayDay });
  const plot = new Plot(options, [days.map((_, at) => at), held, ...(isMeasured ? [busy] : [])], place);
  drawn.add(plot);
  const watch = new ResizeObserver(() => {
    if (!place.isConnected) {
      watch.disconnect();
      if (drawn.has(plot)) forget(plot);
    } else if (place.clientWidth && place.clientWidth !== plot.width) {
      plot.setSize({ width: place.clientWidth, height: BAR_HEIGHT });
    }
  });
  watch.observe(place);
}

function barOptions(Plot, { days, width, isMeasured, sayDay }) {
  const bars = (part) => ({ paths: Plot.paths.bars({ size: [part, 64] }), points: { show: false } });
  const grid = { stroke: () => colour("--bs-border-color"), width: 1 };
  const text = { stroke: () => colour("--bs-body-color"), font: `12px ${getComputedStyle(document.body).fontFamily}` };
  return {
    width,
    height: BAR_HEIGHT,
    legend: { show: false },
    select: { show: false },
    cursor: { drag: { x: false, y: false }, points: { show: false }, x: false, y: false },
    hooks: { setCursor: [(plot) => sayDay(plot.cursor.idx)] },
    scales: {
      x: { time: false, range: [-0.5, days.length - 0.5] },
      y: { range: (_, __, top) => [0, Math.max(1, top) * 1.1] },
    },
    axes: [
      {
        ...text,
        grid: { show: false },
        ticks: { show: false },
        size: 28,
        space: 56,
        incrs: [1, 2, 7, 14, 28],
        values: (_, splits) => splits.map((at) => (Number.isInteger(at) && days[at] ? shortDay(days[at]) : "")),
      },
      { ...text, grid, ticks: { show: false }, size: 48 },
    ],
    series: [
      {},
      { ...bars(0.72), fill: () => faint("--bs-link-color"), stroke: () => colour("--bs-link-color"), width: 1 },
      ...(isMeasured ? [{ ...bars(0.44), fill: () => colour("--bs-link-color"), width: 0 }] : []),
    ],
  };
}

function hours(value) {
  return `${value.toLocaleString("en", { maximumFractionDigits: 1 })} h`;
}

function shortDay(day) {
  return new Date(`${day}T00:00Z`).toLocaleDateString([], { day: "numeric", month: "short", timeZone: "UTC" });
}

function longDay(day) {
  const parts = { weekday: "short", day: "numeric", month: "short", timeZone: "UTC" };
  return new Date(`${day}T00:00Z`).toLocaleDateString([], parts);
}
