// The panel that asks for a warm cache to be built, or built again.

import { h } from "../dom.js";
import { nameOf } from "./cache-words.js";
import { field, openPanel } from "./ui.js";

const ANY = "gpu:";
const CPU = "cpu";

// again: a build whose suite is taken again; save(body) asks for it.
export function openBuild({ choices, again = null, save }) {
  const suite = again ? null : suiteField(choices);
  const image = field({
    label: "Image",
    name: "image",
    value: again?.image ?? choices.images[0] ?? "",
    suggestions: choices.images,
    required: true,
    maxlength: "512",
    help: "Only servers with this very image are given the cache.",
  });
  const course = field({
    label: "Course",
    name: "course",
    value: again?.course ?? "",
    suggestions: choices.courses,
    maxlength: "255",
    help: "Only for servers of this course; empty for all.",
  });
  const place = placeField(choices, again);
  const about = again
    ? h("p", {}, `Compiles the suite of ${nameOf(again)} once more, exactly as it was then.`)
    : h("p", {}, "Compiles what the suite names, proves it in a second container, and then gives it to starts.");
  openPanel({
    title: again ? `Build ${again.suite.name} again` : "Build a warm cache",
    body: [about, suite?.node, image.node, course.node, place.node].filter(Boolean),
    save: {
      label: "Build",
      busy: "Asking…",
      async run() {
        if (suite && !suite.input.value) return refuse(suite, "Choose a suite.");
        if (!image.input.value.trim()) return refuse(image, "Name an image.");
        const source = again ? { again_of: again.id } : { suite: suite.input.value };
        await save({
          ...source,
          image: image.input.value.trim(),
          course: course.input.value.trim(),
          ...placeOf(place.input.value),
        });
        return true;
      },
    },
  });
}

function refuse(one, text) {
  one.setProblem(text);
  one.input.focus();
  return false;
}

function suiteField({ suites }) {
  const options = suites.map(({ name, targets, fault }) => [
    fault ? "" : name,
    fault ? `${name} (cannot be built)` : `${name}: ${targets.join(", ")}`,
  ]);
  const one = field({
    label: "Suite",
    name: "suite",
    kind: "select",
    options: options.length ? options : [["", "The lab has none"]],
    value: suites.find(({ fault }) => !fault)?.name ?? "",
    help: "What is compiled: the folders of share/suites on the lab's host.",
  });
  for (const option of one.input.options) option.disabled = option.value === "";
  const faults = suites.filter(({ fault }) => fault);
  one.node.append(...faults.map(({ name, fault }) => h("p", { class: "lab-small lab-quiet mb-0" }, `${name}: ${fault}`)));
  return one;
}

function placeField({ pools, gpus }, again) {
  const options = [
    ...(gpus ? [[ANY, "any GPU"], ...pools.map((pool) => [ANY + pool, `a GPU of the pool ${pool}`])] : []),
    [CPU, "the CPU"],
  ];
  const wanted = again ? (again.gpus ? ANY + again.pool : CPU) : options[0][0];
  return field({
    label: "Where",
    name: "pool",
    kind: "select",
    options,
    value: options.some(([value]) => value === wanted) ? wanted : options[0][0],
    help: "Only servers with the same kind of GPU and driver are given the cache. The build waits for a GPU like anybody.",
  });
}

function placeOf(value) {
  return value === CPU ? { gpus: 0, pool: "" } : { gpus: 1, pool: value.slice(ANY.length) };
}
