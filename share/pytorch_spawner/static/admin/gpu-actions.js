// What an admin does to a GPU: a panel each, with what it means, and Undo afterwards.

import { h } from "../dom.js";
import { gib, plural } from "../said.js";
import { outcome } from "./api.js";
import { effectNodes, makePreview } from "./grant-preview.js";
import { holderName, isMig, modeToCome, modeWords, stateOf, subjectWords } from "./gpu-words.js";
import { debounce, field, openPanel, toast } from "./ui.js";

const MOST_SLOTS = 8;
const MOST_NAMES = 20;

// The entries of "Actions". page: {api, merge(gpu), gpus(), config}.
export function menuOf(page, gpu, opener) {
  const entry = (label, act, danger = false) => ({ label, danger, run: () => act(page, gpu, opener) });
  return [
    gpu.drained ? entry("Return to service…", returnToService) : entry("Drain…", drain),
    entry("Change mode…", changeMode),
    entry("Move to pool…", movePool),
    ...(gpu.pins ?? []).filter(isOurs).map((one) => entry(`Unpin from ${subjectWords(one)}…`, () => unpin(page, gpu, one, opener))),
    ...gpu.holders
      .filter(({ kept_until: kept }) => kept === null || kept === undefined)
      .map((holder) =>
        entry(`Stop ${holderName(holder)}'s server…`, () => stopServer(page, gpu, holder, opener), true),
      ),
  ];
}

function nameOf({ index }) {
  return `GPU ${index}`;
}

function text(...children) {
  return h("p", {}, ...children);
}

function holdersWords({ leases }) {
  return leases === 0
    ? "Nobody holds it now."
    : `${plural(leases, "server")} ${leases === 1 ? "holds" : "hold"} it now.`;
}

async function undo(page, change) {
  // The stream looks at once after a change and after its undo, and tells both.
  await page.api.call("POST", `log/${change}/undo`);
}

function tellDone(page, said, change) {
  toast(said, { undo: change === null || change === undefined ? undefined : () => undo(page, change) });
}

// ---- what is set of a GPU -----------------------------------------------------------------------

// The panel of a change of settings: it is made to what was seen (the etag), and when somebody else
// was faster it says so and shows what is there now. read() gives the change, or null when the
// fields say what is wrong; show(gpu) puts into the fields what is there now.
function settingPanel(page, gpu, opener, { title, body, label, busy, read, said, show }) {
  let { etag } = gpu;
  const panel = openPanel({
    title,
    body,
    opener,
    save: {
      label,
      busy,
      async run() {
        const change = read();
        if (change === null) return false;
        const { data } = await page.api.call("PATCH", `gpus/${encodeURIComponent(gpu.uuid)}`, { body: change, etag });
        page.merge(data.gpu);
        tellDone(page, said(change), data.change);
        return true;
      },
      onConflict(now) {
        if (!now) {
          panel.close();
          toast(`${nameOf(gpu)} is not there any more.`);
          return;
        }
        ({ etag } = now);
        page.merge(now);
        show(now);
      },
    },
  });
}

export function drain(page, gpu, opener) {
  const reason = field({
    label: "Reason",
    name: "drained",
    maxlength: "255",
    required: true,
    help: "Other admins see it here.",
    placeholder: "Fan is replaced on Friday",
  });
  const state = text(holdersWords(gpu));
  settingPanel(page, gpu, opener, {
    title: `Drain ${nameOf(gpu)}`,
    body: [
      text("Nobody new gets it until it is returned to service. Who holds it keeps it until their server stops."),
      state,
      reason.node,
    ],
    label: "Drain",
    busy: "Draining…",
    read() {
      const drained = reason.input.value.trim();
      if (drained) return { drained };
      reason.setProblem("Say why, in a few words.");
      reason.input.focus();
      return null;
    },
    said: () => `${nameOf(gpu)} is drained.`,
    show(now) {
      state.textContent = now.drained ? `It is drained already: ${now.drained}` : holdersWords(now);
    },
  });
}

export function returnToService(page, gpu, opener) {
  const words = (now) => (now.drained ? `It was drained: ${now.drained}` : "It is in service already.");
  const why = text(words(gpu));
  const health = gpu.health
    ? text(h("strong", {}, "Note: "), `it is still unhealthy, so nobody gets it: ${gpu.health}`)
    : "";
  settingPanel(page, gpu, opener, {
    title: `Return ${nameOf(gpu)} to service`,
    body: [why, text("It is handed out again from now on."), health],
    label: "Return to service",
    read: () => ({ drained: "" }),
    said: () => `${nameOf(gpu)} is back in service.`,
    show(now) {
      why.textContent = words(now);
    },
  });
}

export function changeMode(page, gpu, opener) {
  if (isMig(gpu)) {
    const said = "This GPU is cut by MIG. That is set on the host (nvidia-smi mig), and the lab follows it by itself.";
    openPanel({ title: `Mode of ${nameOf(gpu)}`, body: text(said), opener });
    return;
  }
  const slots = Array.from({ length: MOST_SLOTS - 1 }, (_, at) => at + 2);
  const options = [
    ["exclusive", "Whole: one holder has all of it"],
    ...slots.map((count) => [`shared:${count}`, `${count} slots${slotSize(gpu, count)}`]),
    ["", "As configured"],
  ];
  const value = (now) => now.setting?.mode ?? (now.setting ? "" : now.mode);
  const mode = field({ label: "Mode", name: "mode", kind: "select", options, value: value(gpu) });
  const state = text();
  const say = (now) => {
    const next = modeToCome(now);
    state.textContent = `It is ${modeWords(now.mode)} now${next ? `, ${next}` : ""}. ${holdersWords(now)}`;
  };
  say(gpu);
  settingPanel(page, gpu, opener, {
    title: `Mode of ${nameOf(gpu)}`,
    body: [
      state,
      mode.node,
      text("A change takes effect once nobody holds the GPU; until then its free slots are handed out as before."),
    ],
    label: "Save",
    read: () => ({ mode: mode.input.value || null }),
    said(change) {
      const becomes = change.mode ? modeWords(change.mode) : "as configured";
      return `${nameOf(gpu)}: mode ${becomes}${gpu.leases ? ", once nobody holds it" : ""}.`;
    },
    show(now) {
      say(now);
      mode.input.value = value(now);
    },
  });
}

function slotSize({ memory_mib: all }, count) {
  return all === null ? "" : ` of ${gib(all / count)} GiB`;
}

export function movePool(page, gpu, opener) {
  const pools = [...new Set(page.gpus().map(({ pool }) => pool))].sort();
  const pool = field({
    label: "Pool",
    name: "pool",
    value: gpu.setting?.pool ?? "",
    suggestions: pools,
    maxlength: "64",
    spellcheck: "false",
    help: "Empty: as configured.",
  });
  const state = text();
  const say = (now) => {
    state.textContent = `It is in pool ${now.pool} now${now.setting?.pool ? ", set here" : ", as configured"}. ${holdersWords(now)}`;
  };
  say(gpu);
  settingPanel(page, gpu, opener, {
    title: `Move ${nameOf(gpu)} to a pool`,
    body: [state, pool.node, text("Grants on a pool give this pool's GPUs. Who holds it now keeps it.")],
    label: "Move",
    busy: "Moving…",
    read: () => ({ pool: pool.input.value.trim() || null }),
    said: (change) => `${nameOf(gpu)} is ${change.pool ? `in pool ${change.pool}` : "in its configured pool"}.`,
    show(now) {
      say(now);
      pool.input.value = now.setting?.pool ?? "";
    },
  });
}

// ---- servers ------------------------------------------------------------------------------------

export function stopServer(page, gpu, holder, opener) {
  const name = holderName(holder);
  const message = field({
    label: `Message to ${holder.user}`,
    name: "message",
    kind: "textarea",
    rows: "3",
    maxlength: "500",
    help: "Shown on the page of their server. May be empty.",
  });
  const path = ["servers", holder.user, ...(holder.server ? [holder.server] : []), "stop"];
  openPanel({
    title: `Stop ${name}'s server`,
    danger: true,
    opener,
    body: [
      text(
        `What runs in it ends, and what was not saved is lost; files in the home directory are kept. ${nameOf(gpu)} is free after that.`,
      ),
      message.node,
    ],
    save: {
      label: "Stop server",
      busy: "Stopping…",
      async run() {
        const body = { message: message.input.value.trim(), start: holder.start ?? "" };
        await page.api.call("POST", path.map(encodeURIComponent).join("/"), { body });
        toast(`${name}'s server is being stopped.`);
      },
    },
  });
}

// ---- pins ---------------------------------------------------------------------------------------

export function pin(page, gpu, opener) {
  const subject = field({
    label: "User",
    name: "subject",
    required: true,
    maxlength: "255",
    spellcheck: "false",
    autocapitalize: "none",
    suggestions: [],
    help: "The name in JupyterHub. It may be somebody who has never logged in.",
    onInput() {
      preview.soon();
      suggest();
    },
  });
  const spec = () => ({
    to: "user",
    subject: subject.input.value.trim(),
    gpus: [gpu.uuid],
    share: gpu.mode === "exclusive" ? "whole" : "any",
    count: 1,
  });
  const preview = makePreview({
    api: page.api,
    ask: () => ({
      body: { put: [spec()] },
      missing: spec().subject ? "" : "Type a name to see what would change.",
    }),
    onAnswer(answer, show) {
      if (!answer) return;
      const nodes = effectNodes(answer, tellFaults(subject, answer));
      const isFaulty = answer.problems.length + answer.faults.length > 0;
      show(
        ...(nodes.length ? nodes : [text(isFaulty ? "It cannot be saved so, see above." : "Nothing would change.")]),
      );
    },
  });
  const suggest = debounce(async () => {
    const query = new URLSearchParams({ kind: "user", search: subject.input.value.trim(), limit: MOST_NAMES });
    try {
      const { data } = await page.api.call("GET", `people?${query}`);
      subject.suggest(data.rows.map(({ name }) => name));
    } catch {
      // Names to choose from are a help only.
    }
  }, 200);
  const there = h("div", {});
  const showPins = (pins) =>
    there.replaceChildren(
      ...pins.map((one) => pinLine(page, gpu, one, (left) => showPins(pins.filter((other) => other !== left)))),
    );
  showPins(gpu.pins ?? []);
  openPanel({
    title: `Pin ${nameOf(gpu)} to a user`,
    opener,
    body: [text(`It is reserved: nobody else gets it. ${sayHolders(gpu)}`), there, subject.node, preview.node],
    save: {
      label: "Save",
      async run() {
        if (!spec().subject) {
          subject.setProblem("Whose is it to be?");
          subject.input.focus();
          return false;
        }
        const { data } = await page.api.call("POST", "grants?unknown_users=allow", { body: spec() });
        tellDone(page, `${nameOf(gpu)} is pinned to ${data.grant.subject}.`, data.change);
        return true;
      },
    },
    onClose() {
      preview.soon.cancel();
      preview.stop();
      suggest.cancel();
    },
  });
  preview.now();
  suggest();
}

function sayHolders(gpu) {
  if (!gpu.holders.length) return stateOf(gpu).text;
  const names = gpu.holders.map(holderName).join(", ");
  return `${names} ${gpu.holders.length === 1 ? "holds" : "hold"} it now, until ${gpu.holders.length === 1 ? "that server stops" : "these servers stop"}.`;
}

// Faults of the name stand beside it; returned are the others.
function tellFaults(subject, { problems = [], faults = [] }) {
  const own = problems.filter(({ field: name }) => name === "subject");
  subject.setProblem(own.map(({ message }) => message).join(" "));
  const rest = problems.filter((problem) => !own.includes(problem)).map(({ message }) => message);
  return problems.length ? rest : faults;
}

function pinLine(page, gpu, one, onGone) {
  const words = `It is pinned to ${subjectWords(one)} already.`;
  if (!isOurs(one)) return h("div", { class: "alert alert-info py-2" }, words);
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast ms-2" }, "Unpin");
  button.setAttribute("aria-label", `Unpin from ${subjectWords(one)}`);
  const fault = h("div", { class: "lab-problem", role: "alert" });
  button.addEventListener("click", async () => {
    button.setAttribute("aria-disabled", "true");
    try {
      await removePin(page, gpu, one);
      onGone(one);
    } catch (error) {
      fault.textContent = outcome(error);
      button.removeAttribute("aria-disabled");
    }
  });
  return h("div", { class: "alert alert-info py-2" }, words, button, fault);
}

// What the configuration or a group pins is changed there.
function isOurs({ source }) {
  return source === "ledger";
}

async function removePin(page, gpu, one) {
  const { data } = await page.api.call("DELETE", `grants/${encodeURIComponent(one.id)}`, { etag: one.etag });
  tellDone(page, `${nameOf(gpu)} is not pinned to ${subjectWords(one)} any more.`, data.change);
}

function unpin(page, gpu, one, opener) {
  openPanel({
    title: `Unpin ${nameOf(gpu)} from ${subjectWords(one)}`,
    opener,
    body: text(
      `The grant ${one.id} is removed${one.gpus > 1 ? `, which pins ${one.gpus} GPUs in all` : ""}. `,
      `The GPU is then for all whose grants cover pool ${gpu.pool}.`,
    ),
    save: { label: "Unpin", run: () => removePin(page, gpu, one) },
  });
}
