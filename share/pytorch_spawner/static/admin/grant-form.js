// The panel of one grant: add, change, remove, with the preview of what it does. Also "Pin a GPU…".

import { h } from "../dom.js";
import { outcome } from "./api.js";
import { choices, gpuOptions, grantFields } from "./grant-fields.js";
import { effectNodes, makePreview } from "./grant-preview.js";
import { faultWords, missing, toSpec, toValues } from "./grant-spec.js";
import { factList, gpuName, grantFacts, grantWords, isEditable, origin, place, readable, whom } from "./grant-words.js";
import { confirmDialog, openPanel, toast } from "./ui.js";

const SUGGESTIONS = 20;

// site: {api, pools, gpus, canAdmin, onSaved()}; grant: the one to change, or start: fields of a new one.
// Returns {id, isOpen(), otherChange(now)}: tell it the grant as it is now when others changed grants.
export function openGrant(site, { grant = null, start = {} } = {}) {
  return grant && !(site.canAdmin && isEditable(grant)) ? openReading(site, grant) : openForm(site, grant, start);
}

function openReading({ gpus, canAdmin }, grant) {
  const why = origin(grant) || (canAdmin ? "" : "You may look, but not change it; an admin of the lab can.");
  const panel = openPanel({ title: title(grant), body: [h("p", {}, why), factList(grantFacts(grant, gpus))] });
  return { id: grant.id, isOpen: () => panel.node.open, otherChange() {} };
}

function title(grant) {
  return `Grant to ${whom(grant)}`;
}

function openForm(site, grant, start) {
  const form = { site, was: grant, note: h("div", { role: "status" }), slot: h("div", {}) };
  form.preview = makePreview({
    api: site.api,
    look: "lab-grant-preview",
    ask() {
      const spec = toSpec(form.fields.read(), form.was ?? {});
      return { body: { put: [spec] }, missing: missing(spec) };
    },
    onAnswer: (answer, show) => showAnswer(form, answer, show),
  });
  fill(form, toValues(grant ?? start));
  form.remove = h("button", { type: "button", class: "btn btn-outline-contrast lab-risky ms-auto" }, "Remove…");
  form.remove.addEventListener("click", () => askRemove(form));
  form.panel = openPanel({
    title: grant ? title(grant) : "Add a grant",
    body: [form.note, form.slot, form.preview.node],
    save: { label: "Save", run: () => save(form), onConflict: (now) => takeOther(form, now) },
    extra: grant ? [form.remove] : undefined,
    onClose: form.preview.stop,
  });
  form.slot.addEventListener("input", form.preview.soon);
  form.slot.addEventListener("change", form.preview.soon);
  form.preview.now();
  return {
    id: grant?.id ?? null,
    isOpen: () => form.panel.node.open,
    otherChange: (now) => otherChange(form, now),
  };
}

function fill(form, values) {
  const { api, pools, gpus } = form.site;
  form.fields = grantFields(values, { pools, gpus, suggest: (kind, search) => suggest(api, kind, search) });
  form.slot.replaceChildren(form.fields.node);
}

async function suggest(api, kind, search) {
  try {
    const query = new URLSearchParams({ kind, search, limit: SUGGESTIONS });
    const { data } = await api.call("GET", `people?${query}`);
    return data.rows.map(({ name }) => name);
  } catch {
    // Suggestions only help; without them the name is typed.
    return [];
  }
}

function showAnswer(form, answer, show) {
  const rest = form.fields.tell(answer?.problems ?? []);
  if (!answer) return;
  const said = new Set((answer.problems ?? []).map(({ message }) => message));
  const isTold = (fault) => [...said].some((message) => fault.includes(message));
  const faults = [...rest, ...answer.faults.filter((fault) => !isTold(fault))];
  const nodes = effectNodes(answer, faults, form.site.gpus);
  const isWrong = said.size > 0 || answer.faults.length > 0;
  const none = isWrong ? "Correct the fields above to see what would change." : "Nothing would change for anybody.";
  show(...(nodes.length ? nodes : [h("p", { class: "lab-quiet" }, none)]));
}

// ---- saving -------------------------------------------------------------------------------------

async function save(form) {
  const { api } = form.site;
  const spec = toSpec(form.fields.read(), form.was ?? {});
  const method = form.was ? "PUT" : "POST";
  const path = form.was ? `grants/${encodeURIComponent(form.was.id)}` : "grants";
  try {
    const { data } = await api.call(method, `${path}?unknown_users=allow`, { body: spec, etag: form.was?.etag });
    saved(
      form.site,
      data,
      `Saved: ${grantWords(data.grant)}, ${place(data.grant, form.site.gpus)}, for ${whom(data.grant)}.`,
    );
  } catch (error) {
    // The panel says a conflict itself.
    if (error.status === 409) {
      form.note.replaceChildren();
      error.message += nowWords(form, error.now);
    }
    throw atFields(error, form.fields, form.site.gpus);
  }
  return true;
}

// What the API found wrong, under the names that the form's fields have.
function atFields(error, fields, gpus) {
  const named = (error.problems ?? []).filter((problem) => fields.place(problem));
  const isTold = (fault) => named.some(({ message }) => fault.includes(message));
  error.faults = (error.faults ?? []).filter((fault) => !isTold(fault));
  // In the form's order: the focus goes to the first.
  const order = Object.keys(fields.read());
  error.problems = named
    .map((problem) => ({ row: null, field: fields.place(problem), message: faultWords(problem) }))
    .sort((one, other) => order.indexOf(one.field) - order.indexOf(other.field));
  return inWords(error, gpus);
}

// A refusal that names GPUs as people call them, and says a single fault once.
function inWords(error, gpus) {
  const say = (text) => readable(text, gpus);
  const { message, faults = [], problems = [] } = error;
  error.message = say(message);
  error.faults = faults.length === 1 && message.includes(faults[0]) ? [] : faults.map(say);
  // One without a field is among the faults.
  error.problems = problems
    .filter(({ field }) => field)
    .map((problem) => ({ ...problem, message: say(problem.message) }));
  return error;
}

function saved(site, { change }, text) {
  site.onSaved();
  const undo = async () => {
    await site.api.call("POST", `log/${change}/undo`);
    site.onSaved();
  };
  toast(text, { undo: change ? undo : undefined });
}

async function askRemove(form) {
  const { api, gpus } = form.site;
  const grant = form.was;
  const preview = makePreview({
    api,
    title: "If removed",
    ask: () => ({ body: { remove: [grant.id] } }),
    onAnswer: (answer, show) => {
      if (!answer) return;
      const nodes = effectNodes(answer, answer.faults, gpus);
      show(...(nodes.length ? nodes : [h("p", { class: "lab-quiet" }, "Nothing would change for anybody.")]));
    },
  });
  preview.now();
  const isSure = await confirmDialog({
    title: "Remove this grant?",
    text: `${grantWords(grant)}, ${place(grant, gpus)}, for ${whom(grant)}.`,
    label: "Remove",
    danger: true,
    body: preview.node,
  });
  if (!isSure) return;
  try {
    const { data } = await api.call("DELETE", `grants/${encodeURIComponent(grant.id)}`, { etag: grant.etag });
    form.panel.close();
    saved(form.site, data, `Removed: ${grantWords(grant)}, for ${whom(grant)}.`);
  } catch (error) {
    if (error.status === 409) otherChange(form, error.now, error.message);
    else tell(form, outcome(error, "Not removed."));
  }
}

// ---- two admins at once -------------------------------------------------------------------------

function tell(form, ...children) {
  form.note.replaceChildren(h("div", { class: "alert alert-warning" }, ...children));
  form.note.scrollIntoView({ block: "nearest" });
}

// now: this grant as it is (null: gone). What is typed stays until the admin takes the other's.
function otherChange(form, now, message = "") {
  if (!form.panel.node.open) return;
  form.preview.soon();
  if (!form.was) return;
  if (now === null) {
    tell(form, message || "Somebody else removed this grant meanwhile.", " Saving adds it again, as a new one.");
    form.was = null;
    form.remove.hidden = true;
    return;
  }
  if (!now || now.etag === form.was.etag) return;
  const button = h(
    "button",
    { type: "button", class: "btn btn-sm btn-outline-contrast mt-2 d-block" },
    "Load what is there now",
  );
  button.addEventListener("click", () => takeOther(form, now));
  const said = message || "Somebody else changed this grant meanwhile. What you typed is kept.";
  tell(form, said, nowWords(form, now), button);
}

function nowWords({ site }, now) {
  return now ? ` It is now: ${grantWords(now)}, ${place(now, site.gpus)}.` : " It is not there any more.";
}

function takeOther(form, now) {
  if (!now) return otherChange(form, null);
  form.was = now;
  fill(form, toValues(now));
  form.note.replaceChildren(h("div", { class: "alert alert-info" }, "This is the grant as it is now."));
  form.slot.querySelector("input").focus();
  form.preview.now();
  return undefined;
}

// ---- pinning ------------------------------------------------------------------------------------

// A GPU for one user: a list to choose from, and Save.
export function openPin(site, user) {
  const { gpus } = site;
  const list = choices({
    name: "gpus",
    legend: "Which GPU",
    isLong: true,
    options: gpuOptions(gpus),
    value: "",
    help: "It is reserved: nobody else gets it while the grant is valid.",
  });
  const spec = () => ({ to: "user", subject: user, gpus: list.chosen(), count: 1, share: "any" });
  const preview = makePreview({
    api: site.api,
    ask: () => ({
      body: { put: [spec()] },
      missing: list.chosen().length ? "" : "Choose a GPU to see what would change.",
    }),
    onAnswer: (answer, show) => {
      list.setProblem("");
      if (answer) show(...effectNodes(answer, answer.faults, gpus));
    },
  });
  const more = h("button", { type: "button", class: "btn btn-outline-contrast ms-auto" }, "More settings…");
  const panel = openPanel({
    title: `Pin a GPU to ${user}`,
    body: gpus.length ? [list.node, preview.node] : [h("p", {}, "The lab knows no GPU that could be pinned.")],
    save: gpus.length ? { label: "Save", run } : undefined,
    extra: [more],
    onClose: preview.stop,
  });
  more.addEventListener("click", () => {
    panel.close();
    site.onMore({ ...spec(), gpus: list.chosen() }, "gpus");
  });
  list.node.addEventListener("change", preview.soon);
  preview.now();
  return { id: null, isOpen: () => panel.node.open, otherChange: preview.soon };

  async function run() {
    if (list.chosen().length === 0) {
      list.setProblem("Choose a GPU.");
      list.node.querySelector("input").focus();
      return false;
    }
    try {
      const { data } = await site.api.call("POST", "grants?unknown_users=allow", { body: spec() });
      saved(site, data, `${gpuName(data.grant.gpus[0], gpus)} is pinned to ${user}.`);
    } catch (error) {
      throw inWords(error, gpus);
    }
    return true;
  }
}
