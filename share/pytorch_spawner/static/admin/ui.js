// What the admin's pages are made of: a side panel, a question, a message with Undo, a field.

import { h } from "../dom.js";
import { loginLink, outcome } from "./api.js";

const TOAST_MS = 15_000;
const PLAIN_TOAST_MS = 8000; // nothing to press in it
const MOST_TOASTS = 3;
let count = 0;

function nextId(name) {
  count += 1;
  return `lab-${name}-${count}`;
}

export function debounce(action, milliseconds = 300) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

// ---- fields -------------------------------------------------------------------------------------

// A labelled field: {node, input, setProblem(text), suggest(values)}. kind: input (default), select
// with options [[value, text], ...], textarea; suggestions: a list to choose from while typing. All
// other names are attributes of the input.
export function field({
  label,
  name,
  kind = "input",
  value = "",
  help = "",
  options = [],
  suggestions,
  onInput,
  ...attributes
}) {
  const id = attributes.id ?? nextId(name);
  const isCheck = attributes.type === "checkbox" || attributes.type === "radio";
  const style = isCheck ? "form-check-input" : kind === "select" ? "form-select" : "form-control";
  const input = h(kind, { class: style, name, ...attributes, id });
  if (kind === "select") {
    for (const option of options) {
      const [key, text] = Array.isArray(option) ? option : [option, option];
      input.append(h("option", { value: key }, text));
    }
  }
  if (isCheck) input.checked = Boolean(value);
  else input.value = value;
  if (onInput) input.addEventListener("input", () => onInput(input.value, input));
  const hint = help ? h("div", { class: "form-text", id: `${id}-help` }, help) : null;
  const fault = h("div", { class: "lab-problem", id: `${id}-problem`, "data-problem-of": name });
  if (hint) input.setAttribute("aria-describedby", hint.id);
  const list = suggestions === undefined ? null : h("datalist", { id: `${id}-list` });
  if (list) input.setAttribute("list", list.id);
  const suggest = (values) => list?.replaceChildren(...values.map(suggestion));
  suggest(suggestions ?? []);
  const title = h("label", { class: isCheck ? "form-check-label" : "form-label", for: id }, label);
  const parts = isCheck ? [input, title] : [title, input, list];
  const node = h("div", { class: isCheck ? "form-check mb-3" : "mb-3" }, ...parts, fault, hint);
  // A fault that was told is about the old value.
  input.addEventListener("input", () => setProblem(input, ""));
  return { node, input, suggest, setProblem: (text) => setProblem(input, text) };
}

function suggestion(item) {
  const [value, text] = Array.isArray(item) ? item : [item, ""];
  return h("option", { value, label: text || false });
}

// Say what is wrong with a field beside it; "" takes it back.
function setProblem(input, text) {
  const slot = slotOf(input);
  slot.textContent = text;
  const described = (input.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && id !== slot.id);
  if (text) described.unshift(slot.id);
  input.classList.toggle("is-invalid", Boolean(text));
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  if (described.length) input.setAttribute("aria-describedby", described.join(" "));
  else input.removeAttribute("aria-describedby");
}

// The place of a field's fault; a field that was not made by field() gets one.
function slotOf(input) {
  const id = `${(input.id ||= nextId(input.name))}-problem`;
  const there = document.getElementById(id) ?? input.getRootNode().querySelector?.(`#${CSS.escape(id)}`);
  if (there) return there;
  const slot = h("div", { class: "lab-problem", id });
  input.after(slot);
  return slot;
}

// ---- panel --------------------------------------------------------------------------------------

// A side panel. save: {label, busy, run, onConflict(now)}; run() saves, and what it throws is shown
// in the panel, which stays open with all that was typed; returning false keeps it open, too.
// body: a node or several. extra: nodes beside the buttons. Returns {node, close, showProblems}.
export function openPanel({ title, body, save, danger = false, onClose, extra, opener }) {
  const id = nextId("panel");
  const back = opener ?? document.activeElement;
  const alert = h("div", { class: "lab-panel-alert", tabindex: "-1" });
  const heading = h("h2", { class: "h5 mb-0", id, tabindex: "-1" }, title);
  const cross = h("button", { type: "button", class: "btn-close", "aria-label": "Close" });
  const cancel = h("button", { type: "button", class: "btn btn-outline-contrast" }, save ? "Cancel" : "Close");
  const button = save
    ? h("button", { type: "submit", class: `btn ${danger ? "btn-danger" : "btn-primary"}` }, save.label)
    : null;
  const content = h("div", { class: "lab-panel-body" }, alert, ...listOf(body));
  const form = h(
    "form",
    { class: "lab-panel-form", novalidate: true, autocomplete: "off" },
    h("header", { class: "lab-panel-head" }, heading, cross),
    content,
    h("footer", { class: "lab-panel-foot" }, button, cancel, ...listOf(extra)),
  );
  const dialog = h("dialog", { class: "lab-panel", "aria-labelledby": id }, form);
  const panel = { node: dialog, save, alert, button, isSaving: false, hasSaved: false, close: () => dialog.close() };
  panel.showProblems = (problems) => showProblems(panel, problems);
  cancel.addEventListener("click", panel.close);
  cross.addEventListener("click", panel.close);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (save) run(panel);
  });
  show(dialog, back, () => onClose?.(panel.hasSaved));
  (dialog.querySelector("[autofocus]") ?? firstField(content) ?? heading).focus();
  return panel;
}

function listOf(nodes) {
  return nodes === undefined || nodes === null ? [] : Array.isArray(nodes) ? nodes : [nodes];
}

function firstField(container) {
  return container.querySelector("input:not([type=hidden], :disabled), select:not(:disabled), textarea:not(:disabled)");
}

async function run(panel) {
  if (panel.isSaving) return;
  const { save, button } = panel;
  panel.isSaving = true;
  // Not `disabled`: that would drop the focus.
  button.setAttribute("aria-disabled", "true");
  button.textContent = save.busy ?? (save.label === "Save" ? "Saving…" : "Working…");
  clearProblems(panel);
  try {
    panel.hasSaved = (await save.run()) !== false;
    if (panel.hasSaved) panel.close();
  } catch (error) {
    if (panel.node.open) showRefused(panel, error);
    // In a panel that was closed meanwhile nobody would see it.
    else toast([...new Set([wordsOf(error), ...(error.faults ?? [])])].join(" "), { isBad: true });
  } finally {
    panel.isSaving = false;
    button.removeAttribute("aria-disabled");
    button.textContent = save.label;
  }
}

function clearProblems({ node, alert }) {
  alert.replaceChildren();
  for (const input of node.querySelectorAll("[aria-invalid]")) setProblem(input, "");
}

function showRefused(panel, error) {
  const problems = error.problems ?? [];
  const rest = showProblems(panel, problems);
  // A fault that stands beside its field is not said twice.
  const faults = (error.faults ?? []).filter((fault) => !problems.some(({ message }) => fault.includes(message)));
  const said = wordsOf(error);
  if (error.needsLogin) return tell(panel, loggedOut(), "warning");
  if (error.status === 409) return tell(panel, [h("p", { class: "mb-0" }, said), conflict(panel, error)], "warning");
  const lines = [...new Set([...faults, ...rest.map(sayProblem)])].filter((line) => line !== error.message);
  if (!lines.length && problems.length > rest.length) return undefined;
  const list = lines.length ? h("ul", { class: "mb-0" }, ...lines.map((line) => h("li", {}, line))) : null;
  return tell(panel, [h("p", { class: "mb-0" }, said), list], "danger");
}

function wordsOf(error) {
  if (error.status !== undefined) return outcome(error);
  console.error(error);
  return "This page had an error of its own. Reload it, then try again.";
}

function tell({ alert }, children, tone) {
  alert.replaceChildren(h("div", { class: `alert alert-${tone}`, role: "alert" }, ...children.filter(Boolean)));
  alert.scrollIntoView({ block: "nearest" });
  if (tone === "danger") alert.focus();
}

function loggedOut() {
  const link = loginLink("alert-link");
  return ["Your session has ended. What you typed stays here. ", link, " (opens in a new tab), then save again."];
}

function conflict(panel, error) {
  if (!panel.save.onConflict) return null;
  const button = h(
    "button",
    { type: "button", class: "btn btn-sm btn-outline-contrast mt-2" },
    "Load what is there now",
  );
  button.addEventListener("click", () => {
    clearProblems(panel);
    panel.button.focus();
    panel.save.onConflict(error.now);
  });
  return button;
}

function sayProblem({ row, field: name, message }) {
  const where = [row ? `line ${row}` : "", name].filter(Boolean).join(", ");
  return where ? `${where}: ${message}` : message;
}

// Each fault beside the field of its name; returned are those without such a field.
function showProblems({ node }, problems) {
  const rest = [];
  let first = null;
  for (const problem of problems) {
    const input = inputOf(node, problem.field);
    if (!input) {
      rest.push(problem);
      continue;
    }
    setProblem(input, problem.message);
    first ??= input;
  }
  first?.focus();
  return rest;
}

function inputOf(node, name) {
  if (!name) return null;
  const find = (key) => node.querySelector(`[name="${CSS.escape(key)}"]`);
  return find(name) ?? find(name.split(".").filter((part) => !/^\d+$/.test(part))[0] ?? "");
}

// Modal, with Escape, and the focus back where it came from.
function show(dialog, back, onClose) {
  const label = back?.getAttribute?.("aria-label");
  dialog.addEventListener("close", () => {
    raiseToasts();
    dialog.remove();
    onClose();
    if (dialog.contains(document.activeElement) || document.activeElement === document.body) refocus(back, label);
  });
  document.body.append(dialog);
  dialog.showModal();
  raiseToasts();
}

// The opener may have been drawn anew meanwhile: then the one of the same name.
function refocus(back, label) {
  const same = () =>
    [...document.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === label);
  const target = back?.isConnected ? back : label ? same() : null;
  target?.focus();
}

// ---- question -----------------------------------------------------------------------------------

// Resolves to whether it was agreed to.
export function confirmDialog({ title, text = "", label = "OK", danger = false, body, opener }) {
  return new Promise((resolve) => {
    const id = nextId("question");
    const said = h("p", { id: `${id}-text`, class: text ? "" : "d-none" }, text);
    const yes = h("button", { type: "submit", class: `btn ${danger ? "btn-danger" : "btn-primary"}` }, label);
    const no = h("button", { type: "button", class: "btn btn-outline-contrast" }, "Cancel");
    const form = h(
      "form",
      { novalidate: true },
      h("h2", { class: "h5", id }, title),
      said,
      ...listOf(body),
      h("div", { class: "lab-question-foot" }, yes, no),
    );
    const attributes = {
      class: "lab-question",
      role: "alertdialog",
      "aria-labelledby": id,
      "aria-describedby": said.id,
    };
    const dialog = h("dialog", attributes, form);
    let agreed = false;
    no.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      agreed = true;
      dialog.close();
    });
    show(dialog, opener ?? document.activeElement, () => resolve(agreed));
    // What cannot be taken back is not one Enter away.
    (firstField(form) ?? (danger ? no : yes)).focus();
  });
}

// ---- messages -----------------------------------------------------------------------------------

// There from the start: a status region that comes with its text is not read out.
const region = h("div", { class: "lab-toasts", role: "status", "aria-live": "polite", "aria-label": "Messages" });
document.body.append(region);
// A modal dialog lies above everything else and makes it inert: messages go with the topmost one.
function raiseToasts() {
  const top = [...document.querySelectorAll("dialog:modal")].at(-1) ?? document.body;
  if (region.parentElement !== top) top.append(region);
}

const toasts = []; // on the screen, the oldest first
const undoable = []; // those of them that can be taken back

// Says what happened for a while; undo: an async function, and the button that calls it (Ctrl+Z
// does, too). What undo() returns is said then. isBad: it was refused.
export function toast(text, { undo, isBad = false } = {}) {
  const said = h("span", { class: "lab-toast-text" }, text);
  const cross = h("button", { type: "button", class: "btn-close", "aria-label": "Dismiss" });
  const button = undo
    ? h("button", { type: "button", class: "btn btn-sm btn-outline-contrast", title: "Ctrl+Z" }, "Undo")
    : null;
  const node = h("div", { class: isBad ? "lab-toast lab-toast-bad" : "lab-toast" }, said, button, cross);
  const item = { node, said, button, cross, undo, timer: 0 };
  const hold = () => clearTimeout(item.timer);
  const wait = () => {
    hold();
    if (item.isBusy) return;
    item.timer = setTimeout(() => dismiss(item), undoable.includes(item) ? TOAST_MS : PLAIN_TOAST_MS);
  };
  item.wait = wait;
  node.addEventListener("pointerenter", hold);
  node.addEventListener("focusin", hold);
  node.addEventListener("pointerleave", wait);
  node.addEventListener("focusout", wait);
  cross.addEventListener("click", () => dismiss(item));
  button?.addEventListener("click", () => takeBack(item));
  if (undo) undoable.push(item);
  toasts.push(item);
  const oldest = toasts.find(({ isBusy }) => !isBusy);
  if (toasts.length > MOST_TOASTS && oldest !== item) dismiss(oldest);
  region.append(node);
  wait();
  return { close: () => dismiss(item) };
}

function dismiss(item) {
  clearTimeout(item.timer);
  forget(item);
  if (toasts.includes(item)) toasts.splice(toasts.indexOf(item), 1);
  item.node.remove();
}

function forget(item) {
  const at = undoable.indexOf(item);
  if (at >= 0) undoable.splice(at, 1);
}

async function takeBack(item) {
  if (!undoable.includes(item)) return;
  forget(item);
  item.isBusy = true;
  clearTimeout(item.timer);
  const { said, button, cross } = item;
  const hadFocus = document.activeElement === button;
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Undoing…";
  try {
    const result = await item.undo();
    said.textContent = typeof result === "string" ? result : `Undone: ${said.textContent}`;
  } catch (error) {
    item.node.classList.add("lab-toast-bad");
    const isUnknown = error.status === 0 || error.status >= 500;
    said.textContent = `${isUnknown ? "It is not known whether this was undone." : "Not undone."} ${error.message || "The lab did not answer."}`;
    if (error.needsLogin) said.append(" ", loginLink());
  }
  item.isBusy = false;
  if (hadFocus) cross.focus();
  button.remove();
  if (!hadFocus) item.wait();
}

document.addEventListener("keydown", (event) => {
  const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  // A key that is held down is one undo.
  if (!isUndo || event.repeat || event.target.closest?.("input, textarea, select, dialog") || undoable.length === 0) return;
  event.preventDefault();
  takeBack(undoable.at(-1));
});

// ---- menu ---------------------------------------------------------------------------------------

let closeMenu = null;

// A menu of a button: items [{label, danger, run}], asked for when it opens. Arrow keys move,
// Escape closes; it stands beside the table, so that redrawing a row leaves it alone.
export function menuButton(button, makeItems) {
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-expanded") === "true") closeMenu?.();
    else openMenu(button, makeItems());
  });
  button.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    openMenu(button, makeItems());
  });
}

function openMenu(button, items) {
  closeMenu?.();
  const entries = items.map(({ label, danger, run: act }) => {
    const style = danger ? "lab-menu-danger" : null;
    const entry = h("button", { type: "button", role: "menuitem", tabindex: "-1", class: style }, label);
    entry.addEventListener("click", () => {
      close(true);
      act();
    });
    return entry;
  });
  const name = button.getAttribute("aria-label") ?? button.textContent;
  const menu = h("div", { class: "lab-menu", role: "menu", "aria-label": name }, ...entries);
  const away = (event) => {
    if (!menu.contains(event.target) && !button.contains(event.target)) close(false);
  };
  const follow = () => place(menu, button.getBoundingClientRect());
  function close(isBack) {
    closeMenu = null;
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    removeEventListener("pointerdown", away, true);
    removeEventListener("scroll", follow, true);
    removeEventListener("resize", follow);
    if (isBack) button.focus();
  }
  menu.addEventListener("keydown", (event) => {
    const at = entries.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      entries.at(to % entries.length).focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      if (event.key === "Escape") event.preventDefault();
      close(true);
    }
  });
  closeMenu = () => close(false);
  document.body.append(menu);
  button.setAttribute("aria-expanded", "true");
  follow();
  addEventListener("pointerdown", away, true);
  addEventListener("scroll", follow, true);
  addEventListener("resize", follow);
  entries[0]?.focus({ preventScroll: true });
}

// Below the button when it fits, else above; never past the window's edge.
function place(menu, around) {
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = around.bottom + 4;
  const top = below + height <= innerHeight ? below : Math.max(4, around.top - height - 4);
  menu.style.top = `${top}px`;
  menu.style.left = `${Math.max(4, Math.min(around.right - width, innerWidth - width - 4))}px`;
}
