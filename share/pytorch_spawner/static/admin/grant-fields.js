// The fields of a grant: labels, help, faults beside them. Names are those of the API's GrantSpec.

import { h } from "../dom.js";
import { faultWords, fieldOf } from "./grant-spec.js";
import { MAX_COUNT, gpuName } from "./grant-words.js";
import { field } from "./ui.js";

const SHARES = [
  ["any", "Any: a GPU or a slot"],
  ["whole", "A whole GPU"],
  ["slot", "One slot of a shared GPU"],
  ["mig", "A MIG instance"],
];
const TO = [
  { key: "user", label: "A user" },
  { key: "group", label: "A group" },
  { key: "everyone", label: "Everyone" },
];
const WHERE = [
  { key: "pool", label: "A pool" },
  { key: "gpus", label: "Pinned GPUs" },
];
const USER_HELP = "The name in JupyterHub. Who has never logged in may be named: it counts from the first login.";
const GROUP_HELP = "The name of a group that JupyterHub has.";
let made = 0;

// One choice of few, as a fieldset; type "checkbox" makes it several of many, isLong a scrolling list.
export function choices({ name, legend, options, value, type = "radio", help = "", isLong = false, isFirst = false }) {
  const chosen = [value].flat();
  const prefix = `choice-${name}-${(made += 1)}`;
  // The place where openPanel looks for the fault of the first box.
  const fault = h("div", { class: "lab-problem", id: `${prefix}-0-problem` });
  const boxes = options.map(({ key }, place) => {
    const box = h("input", { type, class: "form-check-input", name, id: `${prefix}-${place}`, value: key });
    box.checked = chosen.includes(key);
    // The panel starts at its first choice; on the one that is made, so that an arrow key changes nothing by chance.
    if (isFirst && box.checked) box.setAttribute("autofocus", "");
    return box;
  });
  const rows = options.map(({ label, note = "" }, place) => {
    const said = note ? h("span", { class: "lab-quiet" }, ` · ${note}`) : "";
    const text = h("label", { class: "form-check-label", for: boxes[place].id }, label, said);
    return h("div", { class: isLong ? "form-check" : "form-check form-check-inline" }, boxes[place], text);
  });
  const hint = help ? h("div", { class: "form-text mb-1", id: `${prefix}-help` }, help) : "";
  const node = h(
    "fieldset",
    { class: "mb-3", "aria-describedby": help ? `${prefix}-help` : null },
    h("legend", { class: "form-label fs-6 mb-1" }, legend),
    hint,
    h("div", { class: isLong ? "lab-choice-list" : null }, ...rows),
    fault,
  );
  const setProblem = (text) => {
    fault.textContent = text;
    const [first] = boxes;
    if (!first) return;
    first.classList.toggle("is-invalid", text !== "");
    if (text) first.setAttribute("aria-invalid", "true");
    else first.removeAttribute("aria-invalid");
    if (text) first.setAttribute("aria-describedby", fault.id);
    else first.removeAttribute("aria-describedby");
  };
  node.addEventListener("change", () => setProblem(""));
  return { node, setProblem, chosen: () => boxes.filter((box) => box.checked).map((box) => box.value) };
}

export function gpuOptions(gpus) {
  return gpus.map(({ uuid, name, pool, pinned_to }) => ({
    key: uuid,
    label: gpuName(uuid, gpus),
    note: [name, `pool ${pool}`, pinned_to ? `pinned to ${pinned_to}` : ""].filter(Boolean).join(" · "),
  }));
}

// {node, read() -> values, place(problem) -> name of the field that shows it or "", tell(problems) -> the rest}
export function grantFields(values, { pools, gpus, suggest }) {
  const fields = makeFields(values, { pools, gpus });
  const column = (name, wide = false) => h("div", { class: wide ? "col-12" : "col-sm-6" }, fields[name].node);
  const subject = column("subject", true);
  const pool = column("pool", true);
  const profile = column("profile");
  const node = h(
    "div",
    {},
    fields.to.node,
    h("div", { class: "row" }, subject),
    fields.where.node,
    h("div", { class: "row" }, pool),
    fields.gpus.node,
    h("div", { class: "row" }, column("share"), profile, column("count")),
    h("div", { class: "row" }, ...["priority", "weekly_gpu_hours", "max_lease_s"].map((name) => column(name))),
    h("div", { class: "row" }, column("valid_from"), column("valid_until")),
    fields.images.node,
  );

  const fit = () => {
    const [to] = fields.to.chosen();
    const isPinned = fields.where.chosen()[0] === "gpus";
    subject.hidden = to === "everyone";
    subject.querySelector("label").textContent = to === "group" ? "Group" : "User";
    subject.querySelector(".form-text").textContent = to === "group" ? GROUP_HELP : USER_HELP;
    pool.hidden = isPinned;
    fields.gpus.node.hidden = !isPinned;
    profile.hidden = fields.share.input.value !== "mig";
  };
  const refill = async () => {
    const [to] = fields.to.chosen();
    if (to !== "everyone") fields.subject.suggest(await suggest(to, fields.subject.input.value.trim()));
  };
  node.addEventListener("change", fit);
  fields.to.node.addEventListener("change", refill);
  fields.subject.input.addEventListener("input", refill);
  fields.subject.input.addEventListener("focus", refill, { once: true });
  fit();

  const place = (problem) => {
    const found = fieldOf(problem);
    const name = found === "share" && !profile.hidden ? "profile" : found;
    return fields[name] && !fields[name].node.closest("[hidden]") ? name : "";
  };
  const tell = (problems) => {
    const said = new Map();
    const rest = [];
    for (const problem of problems) {
      const name = place(problem);
      if (name) said.set(name, [...(said.get(name) ?? []), faultWords(problem)]);
      else rest.push(problem.message);
    }
    for (const [name, one] of Object.entries(fields)) one.setProblem((said.get(name) ?? []).join("; "));
    return rest;
  };
  const read = () =>
    Object.fromEntries(
      Object.entries(fields).map(([name, one]) => {
        if (!one.chosen) return [name, textOf(one.input)];
        return [name, name === "gpus" ? one.chosen() : one.chosen()[0]];
      }),
    );
  return { node, read, place, tell };
}

// A number that the browser cannot read comes as ""; it must not be taken for "not set".
function textOf(input) {
  return input.validity.badInput ? "not a number" : input.value;
}

function makeFields(values, { pools, gpus }) {
  // A GPU or pool that is gone stays to be seen, so that saving does not quietly change the grant.
  const names = [...new Set([...pools.map(({ name }) => name), values.pool].filter(Boolean))];
  const gone = values.gpus.filter((uuid) => !gpus.some((gpu) => gpu.uuid === uuid));
  const pinnable = [...gpuOptions(gpus), ...gone.map((uuid) => ({ key: uuid, label: uuid, note: "not there now" }))];
  const text = (name, label, help, more = {}) => field({ name, label, help, value: values[name], ...more });
  const number = (name, label, help, more = {}) => text(name, label, help, { type: "number", step: "any", ...more });
  return {
    to: choices({ name: "to", legend: "Who", options: TO, value: values.to, isFirst: true }),
    subject: text(
      "subject",
      "User",
      USER_HELP,
      { type: "text", maxlength: "255", spellcheck: "false", autocomplete: "off", suggestions: [] },
    ),
    where: choices({ name: "where", legend: "From", options: WHERE, value: values.where }),
    pool: text("pool", "Pool", "Only GPUs of this pool.", {
      kind: "select",
      options: [["", "Any pool"], ...names.map((name) => [name, name])],
    }),
    gpus: choices({
      name: "gpus",
      legend: "Which GPUs",
      type: "checkbox",
      isLong: true,
      options: pinnable,
      value: values.gpus,
      help: "They are reserved: nobody else gets them while this grant is valid.",
    }),
    share: text("share", "What", "Which sort of GPU a start may ask for.", { kind: "select", options: SHARES }),
    profile: text("profile", "MIG profile", "As the driver names it, such as 1g.10gb.", {
      type: "text",
      spellcheck: "false",
    }),
    count: number("count", "How many at once", `For each person. ${MAX_COUNT} means any number.`, {
      min: "1",
      max: MAX_COUNT,
      step: "1",
    }),
    priority: number("priority", "Priority", "−100 to 100; the higher is served first.", {
      min: "-100",
      max: "100",
      step: "1",
    }),
    weekly_gpu_hours: number(
      "weekly_gpu_hours",
      "GPU-hours a week",
      "From Monday to Sunday, UTC; one of 4 slots counts a quarter. Empty: no limit.",
      { min: "0" },
    ),
    max_lease_s: number(
      "max_lease_s",
      "Longest lease, hours",
      "How long one start may hold it. Empty: the lab's own limit.",
      { min: "0" },
    ),
    valid_from: text("valid_from", "Valid from", "In your time zone. Empty: from now on.", { type: "datetime-local" }),
    valid_until: text("valid_until", "Valid until", "In your time zone; what is held ends then. Empty: for good.", {
      type: "datetime-local",
    }),
    images: text("images", "Images", "One reference a line, exactly as it is started. Empty: all images.", {
      kind: "textarea",
      rows: "2",
      spellcheck: "false",
    }),
  };
}
