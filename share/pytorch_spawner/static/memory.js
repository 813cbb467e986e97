// The card "Memory": which notebook holds what, and a button that gives it back. It asks the service
// while somebody looks at the page, and at no other time.

import { h, renew } from "./dom.js";
import { ago, lasting } from "./said.js";

const EVERY_S = 30;
const YOUNG_S = 20;
// The driver is looked at every 5 s: so long after a shutdown its number is the new one.
const AFTER_S = [1, 7];
const KINDS = {
  terminal: "in a terminal",
  leftover: "left over from a kernel that is gone",
  lab: "the lab's own, goes by itself",
  other: "no notebook's",
};
const STATES = {
  busy: "computing",
  idle: "idle",
  starting: "starting",
  restarting: "restarting",
  dead: "has ended unexpectedly",
};

// config: of the page; cards: the element above or below which the card goes. Returns tick(state, now)
// to be called every second with the journal's state.
export function memoryCard(config, cards) {
  const again = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, "Look again");
  const card = {
    config,
    cards,
    answer: null,
    problem: "",
    isAsking: false,
    wasDrawn: false,
    askedAt: -Infinity,
    soon: [],
    said: h("p", { class: "lab-memory-said mb-2", role: "status" }),
    list: h("div", {}),
    foot: h("p", { class: "lab-quiet lab-small mb-0" }),
    again,
  };
  const head = h("div", { class: "card-header" }, h("h2", { class: "h6 mb-0" }, "Memory"), again);
  const body = h("div", { class: "card-body" }, card.said, card.list, card.foot);
  card.node = h("section", { class: "card lab-card lab-memory-card", id: "memory", "aria-label": "Memory", hidden: true }, head, body);
  cards.after(card.node);
  again.addEventListener("click", () => look(card));
  return { tick: (state, now) => tick(card, mayLook(card, state, now)) };
}

// While a server is young nobody has opened a notebook, and a class that starts needs every core.
function mayLook({ config }, { isUp, end, last }, now) {
  return Boolean(config.memoryUrl) && isUp && !end && now - (last ?? now) >= YOUNG_S;
}

function tick(card, may) {
  card.node.hidden = !may;
  if (!may) {
    card.answer = null;
    card.askedAt = -Infinity;
    return;
  }
  drawFoot(card);
  const now = Date.now() / 1000;
  const isDue = now - card.askedAt >= EVERY_S || (card.soon.length && now >= card.soon[0]);
  if (document.visibilityState === "visible" && isDue) look(card);
}

function address(card, more = "") {
  const { memoryUrl, xsrf } = card.config;
  const url = more ? memoryUrl.replace(/memory$/, more) : memoryUrl;
  return `${url}?${new URLSearchParams({ _xsrf: xsrf })}`;
}

async function look(card) {
  if (card.isAsking) return;
  card.isAsking = true;
  const now = Date.now() / 1000;
  card.askedAt = now;
  card.soon = card.soon.filter((at) => at > now);
  card.again.setAttribute("aria-disabled", "true");
  if (!card.answer) card.said.textContent = "Looking what the notebooks hold…";
  try {
    const answer = await fetch(address(card), { cache: "no-store" });
    const said = await answer.json();
    card.problem = answer.ok ? "" : String(said.message);
    if (answer.ok || answer.status === 404) card.answer = answer.ok ? said : null;
  } catch {
    card.problem = "The lab service cannot be reached just now; it is asked again in a moment.";
  }
  card.isAsking = false;
  card.again.removeAttribute("aria-disabled");
  draw(card);
}

function draw(card) {
  const { answer, problem } = card;
  const sentence = problem || answer?.sentence || "";
  if (card.said.textContent !== sentence) card.said.textContent = sentence;
  card.said.classList.toggle("lab-bad-text", Boolean(problem));
  const rows = answer ? [...answer.kernels.map((one) => kernelRow(one, answer)), ...answer.others.map((one) => otherRow(one, answer))] : [];
  renew(card.list, rows.length ? [h("ul", { class: "lab-list lab-holders" }, ...rows)] : []);
  for (const button of card.list.querySelectorAll("button[data-kernel]")) {
    // renew() makes elements anew: only what is new lacks this.
    button.onclick = () => ask(card, answer.kernels.find(({ id }) => id === button.dataset.kernel));
  }
  // What holds something is what somebody comes for; else the card only takes the place of the rest.
  const isFirst = Boolean(answer?.kernels.length);
  if (isFirst !== Boolean(card.node.nextElementSibling === card.cards)) {
    if (isFirst) card.cards.before(card.node);
    else card.cards.after(card.node);
  }
  drawFoot(card);
  // JupyterLab's launcher leads here for the sake of this card.
  if (!card.wasDrawn && location.hash === "#memory") card.node.scrollIntoView({ block: "nearest" });
  card.wasDrawn = true;
}

function drawFoot({ answer, foot }) {
  const text = answer ? `Looked ${ago(answer.at, Math.max(answer.at, Date.now() / 1000))}.` : "";
  if (foot.textContent !== text) foot.textContent = text;
}

function kernelRow(one, { gpus }) {
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast", "data-kernel": one.id }, "Shut down", h("span", { class: "visually-hidden" }, ` ${one.notebook}`));
  const idle = one.idle_s === null || one.idle_s < 60 ? "" : ` for ${lasting(one.idle_s)}`;
  const state = one.state === "idle" ? `idle${idle}` : (STATES[one.state] ?? "state unknown");
  return row(one.notebook, one.path, [...held(one, gpus), state], button);
}

function otherRow(one, { gpus }) {
  const from = one.kind === "leftover" && one.path ? `left over from ${one.path}` : KINDS[one.kind];
  const isTheirs = one.kind !== "lab" && one.pid !== null;
  const number = isTheirs ? [`process ${one.pid}`] : [];
  const remedy = isTheirs ? h("code", { class: "lab-small" }, `kill ${one.pid}`) : null;
  return row(one.notebook, "", [...held(one, gpus), from, ...number], remedy && h("span", { class: "lab-quiet lab-small" }, "In a terminal: ", remedy));
}

function row(name, title, facts, action) {
  const words = h("div", { class: "lab-holder-words" }, h("strong", { title: title || null }, name), h("span", { class: "lab-facts" }, facts.join(" · ")));
  return h("li", { class: "lab-holder" }, words, action);
}

// "11 GiB of the GPU", "2.1 GiB of memory"; without a GPU nothing is said of one.
function held({ gpu_mib, uses_gpu, memory_mib }, gpus) {
  const memory = memory_mib === null ? "memory unknown" : `${size(memory_mib)} of memory`;
  if (!gpus.length) return [memory];
  if (gpu_mib) return [`${size(gpu_mib)} of the GPU${gpus.length > 1 ? "s" : ""}`, memory];
  if (gpu_mib === 0) return ["not on the GPU", memory];
  return [uses_gpu ? "on the GPU, how much is unknown" : "GPU memory unknown", memory];
}

function size(mib) {
  if (mib < 1000) return `${mib} MiB`;
  const value = mib / 1024;
  return `${value < 10 ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)} GiB`;
}

// ---- shutting down ------------------------------------------------------------------------------

function ask(card, one) {
  const problem = h("p", { class: "lab-bad-text mb-2", role: "alert", hidden: true });
  const yes = h("button", { type: "button", class: "btn btn-danger" }, "Shut down");
  const no = h("button", { type: "button", class: "btn btn-outline-contrast" }, "Keep it");
  const dialog = h(
    "dialog",
    { class: "lab-dialog", "aria-labelledby": "lab-shutdown" },
    h("h2", { class: "h5", id: "lab-shutdown" }, `Shut down ${one.notebook}?`),
    h("p", {}, "Its variables are lost: data, models, whatever its cells computed. ", h("strong", {}, "The notebook itself is kept"), " as it was saved last."),
    one.state === "busy" ? h("p", {}, "It is computing just now; that ends.") : null,
    problem,
    h("div", { class: "lab-dialog-buttons" }, yes, no),
  );
  no.addEventListener("click", () => dialog.close());
  // Escape must not hide what comes of it.
  dialog.addEventListener("cancel", (event) => no.disabled && event.preventDefault());
  yes.addEventListener("click", () => shutDown(card, one, { dialog, problem, yes, no }));
  dialog.addEventListener("close", () => dialog.remove());
  // Not into the card, which may be hidden or moved while the question is open.
  document.body.append(dialog);
  dialog.showModal();
  no.focus();
}

async function shutDown(card, one, { dialog, problem, yes, no }) {
  if (yes.disabled) return;
  yes.disabled = no.disabled = true;
  yes.textContent = "Shutting down…";
  let why = "";
  try {
    const answer = await fetch(address(card, `kernels/${encodeURIComponent(one.id)}`), { method: "DELETE" });
    // Gone already is what was wanted.
    if (!answer.ok && answer.status !== 404) why = String((await answer.json()).message);
  } catch {
    why = "The lab service cannot be reached just now; try again in a moment.";
  }
  yes.disabled = no.disabled = false;
  yes.textContent = "Shut down";
  if (why) {
    problem.textContent = why;
    problem.hidden = false;
    // Whoever presses Escape three times closes it, whatever "cancel" says.
    if (!dialog.open) {
      document.body.append(dialog);
      dialog.showModal();
      no.focus();
    }
    return;
  }
  dialog.close();
  card.soon = AFTER_S.map((seconds) => Date.now() / 1000 + seconds);
  await look(card);
  card.again.focus();
}
