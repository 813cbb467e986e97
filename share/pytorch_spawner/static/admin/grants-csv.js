// "Import CSV…": a file, what it would change or which rows are bad, and only then the change.

import { h } from "../dom.js";
import { grantWords, place, readable, whom } from "./grant-words.js";
import { effectNodes, lines, makePreview } from "./grant-preview.js";
import { changeTable, differences } from "./changes.js";
import { plural } from "../said.js";
import { field, openPanel, toast } from "./ui.js";

const TYPE = "text/csv";
// The service takes no larger body (lab/app.py, MAX_BODY_BYTES).
const MOST_BYTES = 1024 * 1024;

export function openImport(site) {
  const page = { site, text: null, etag: null, isGood: false };
  const file = field({
    label: "CSV file",
    name: "file",
    type: "file",
    accept: ".csv,text/csv",
    help: "As “Export CSV” writes it: one grant a line. It replaces all grants, but for those of the configuration and of groups.",
  });
  const unknown = field({
    label: "Names that JupyterHub has not seen yet are right",
    name: "unknown",
    type: "checkbox",
    help: "Else a line with a user who has never logged in is a mistake.",
  });
  const preview = makePreview({
    api: site.api,
    title: "If imported",
    ask: () => ({
      body: page.text,
      type: TYPE,
      isUnknownAllowed: unknown.input.checked,
      missing: page.text === null ? "Choose a file to see what would change." : "",
    }),
    onAnswer(answer, show) {
      const isRight = Boolean(answer) && answer.faults.length === 0 && answer.problems.length === 0;
      page.isGood = isRight && answer.changes.length > 0;
      allow();
      if (answer) show(...answerNodes(answer, site.gpus));
    },
  });
  const panel = openPanel({
    title: "Import grants from CSV",
    body: [file.node, unknown.node, preview.node],
    save: { label: "Import", run, onConflict: again },
    onClose: preview.stop,
  });
  const button = panel.node.querySelector("button[type=submit]");
  allow();
  preview.now();

  // Else a browser says nothing when the same file is chosen again, corrected.
  file.input.addEventListener("click", () => (file.input.value = ""));
  file.input.addEventListener("cancel", take);
  file.input.addEventListener("change", take);
  unknown.input.addEventListener("change", () => {
    page.isGood = false;
    allow();
    preview.now();
  });
  return { id: null, isOpen: () => panel.node.open, otherChange: () => page.text !== null && preview.soon() };

  function allow() {
    button.disabled = !page.isGood;
  }

  async function take() {
    page.text = null;
    page.isGood = false;
    allow();
    const [chosen] = file.input.files;
    if (!chosen) return preview.now();
    const { text, fault } = await contentOf(chosen);
    if (fault) {
      file.setProblem(fault);
      return preview.now();
    }
    page.text = text;
    return again();
  }

  // The version is taken before the preview: what somebody changes after it is then a conflict.
  async function again() {
    try {
      page.etag = (await site.api.call("GET", "grants")).data.etag;
    } catch (error) {
      page.etag = null;
      page.isGood = false;
      allow();
      return preview.show(h("p", { class: "lab-bad-text" }, `The grants could not be read. ${error.message}`));
    }
    return preview.now();
  }

  async function run() {
    const query = unknown.input.checked ? "?unknown_users=allow" : "";
    const { data } = await site.api.call("PUT", `grants${query}`, { body: page.text, type: TYPE, etag: page.etag });
    site.onSaved();
    const { length } = data.changes ?? [];
    const undo = length ? () => site.api.call("POST", `log/${data.changes[0]}/undo`).then(() => undefined) : undefined;
    toast(
      length
        ? `Imported: ${plural(length, "grant")} changed.`
        : "Imported: nothing was different.",
      { undo },
    );
    return true;
  }
}

async function contentOf(file) {
  if (file.size > MOST_BYTES) return { fault: "This file is larger than 1 MiB; it is hardly a list of grants." };
  try {
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()) };
  } catch {
    // Guessing would change names.
    return { fault: "This file is not in UTF-8: save it as “CSV UTF-8”, then choose it again." };
  }
}

function answerNodes(answer, gpus) {
  const { problems, faults, changes } = answer;
  if (problems.length || faults.length) {
    // A problem without a row (two grants for one GPU) is told by its fault.
    const bad = problems.map(problemWords);
    const list = [...new Set(bad.length ? bad : faults)].map((one) => readable(one, gpus));
    return [
      h("p", { class: "lab-bad-text" }, `Nothing can be imported: ${plural(list.length, "fault")}.`),
      lines(list, "lab-bad-text"),
      h("p", { class: "mt-2 mb-0" }, "Correct the file and choose it again."),
    ];
  }
  if (changes.length === 0) return [h("p", {}, "Nothing would change: these are the grants as they are.")];
  const added = changes.filter(({ before }) => !before);
  const removed = changes.filter(({ after }) => !after);
  const changed = changes.filter(({ before, after }) => before && after);
  const say = (grant) => `${grant.id}: ${whom(grant)}, ${place(grant, gpus)}, ${grantWords(grant)}`;
  return [
    h("p", {}, `${added.length} added, ${changed.length} changed, ${removed.length} removed.`),
    ...part(
      "Added",
      added.map(({ after }) => say(after)),
    ),
    ...(changed.length
      ? [h("h4", { class: "h6 mt-2" }, "Changed"), ...changed.map((one) => changeFold(one, say))]
      : []),
    ...part(
      "Removed",
      removed.map(({ before }) => say(before)),
    ),
    h("h4", { class: "h6 mt-2" }, "What it means"),
    ...(answer.effects.length || answer.warnings.length
      ? effectNodes(answer, [], gpus)
      : [h("p", {}, "Nothing changes for anybody.")]),
  ];
}

function part(title, sentences) {
  return sentences.length ? [h("h4", { class: "h6 mt-2" }, title), lines(sentences)] : [];
}

function changeFold({ id, before, after }, say) {
  return h(
    "details",
    { "data-key": `change:${id}` },
    h("summary", {}, say(after)),
    changeTable(differences(before, after)),
  );
}

function problemWords({ row, field: name, message }) {
  return `${row ? `line ${row}: ` : ""}${name && !message.includes(name) ? `${name}: ` : ""}${message}`;
}
