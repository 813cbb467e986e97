// What the list pages share: loading and troubles said in a sentence, paging, the address bar.

import { h, renew } from "../dom.js";
import { ago, exact } from "../said.js";
import { outcome } from "./api.js";

// A place that says that something loads, or why it did not, with "Try again".
export function stateBox(again) {
  const place = h("div", {});
  const notice = h("div", {});
  const node = h("div", {}, notice, place);
  // Only what takes a while is said: a line that comes and goes at once unsettles.
  let timer = 0;
  const say = (...children) => {
    clearTimeout(timer);
    place.replaceChildren(...children);
  };
  return {
    node,
    loading(sentence) {
      say();
      timer = setTimeout(() => say(h("p", { class: "lab-quiet", role: "status" }, sentence)), 300);
    },
    clear: () => say(),
    // What an action came to; it stays until it is closed or the next action. said: what else is known.
    refused(error, said = "Nothing was changed.") {
      const close = h("button", { type: "button", class: "btn-close ms-auto", "aria-label": "Close" });
      close.addEventListener("click", () => notice.replaceChildren());
      const words = h("div", {}, ...(error.needsLogin ? loggedOut() : [outcome(error, said)]));
      notice.replaceChildren(h("div", { class: "alert alert-warning d-flex gap-2", role: "alert" }, words, close));
      notice.scrollIntoView({ block: "nearest" });
    },
    forget: () => notice.replaceChildren(),
    trouble(error) {
      say(h("div", { class: "alert alert-danger", role: "alert" }, ...troubleWords(error, again)));
    },
  };
}

function troubleWords(error, again) {
  if (error.needsLogin) return loggedOut();
  if (error.status === 403) return [outcome(error)];
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast ms-2" }, "Try again");
  button.addEventListener("click", () => again());
  return [outcome(error), button];
}

function loggedOut() {
  const link = h("a", { href: location.href, class: "alert-link" }, "Log in again");
  return ["Your session has ended. ", link, " to go on here; nothing was changed."];
}

const underWay = new Map(); // what was pressed and is not over yet, by wish

// What a press does. A second one of the same wish meanwhile is a double click and left out; where presses
// add up, it begins from what the first came to, and is dropped with a first that was refused.
export async function guarded(page, wish, action, { addsUp = false } = {}) {
  const before = underWay.get(wish);
  if (before) {
    if (addsUp) before.push(action);
    return;
  }
  const turns = [action];
  let isOld = false;
  underWay.set(wish, turns);
  page.state.forget();
  try {
    // Those that come meanwhile, too.
    for (const turn of turns) await turn();
  } catch (error) {
    page.state.refused(error);
    isOld = [400, 404, 409].includes(error.status);
  } finally {
    underWay.delete(wish);
  }
  // Somebody else was faster, or it is over: show what is now, with the sentence that says so.
  if (isOld) await page.load({ quiet: true });
}

// load({quiet}) asks for path() and draws the answer; the last question asked is the one answered.
export function loader({ api, state, path, draw, saying }) {
  let running = null;
  return async function load({ quiet = false } = {}) {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    if (!quiet) state.loading(saying);
    try {
      const { data } = await api.call("GET", path(), { signal: mine.signal });
      if (mine !== running) return null;
      state.clear();
      draw(data);
      return data;
    } catch (error) {
      if (mine === running && error.name !== "AbortError") state.trouble(error);
      return null;
    }
  };
}

// As dom.js's renew, for rows that change places: the focus goes with the name of the button, not
// with its place, where the next Enter would meet somebody else.
export function renewNamed(container, children) {
  const nameOf = (element) => element.getAttribute("aria-label");
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  const name = focused && nameOf(focused);
  renew(container, children);
  if (!name || (document.activeElement !== document.body && nameOf(document.activeElement) === name)) return;
  const same = [...container.querySelectorAll("[aria-label]")].find((element) => nameOf(element) === name);
  if (same) same.focus();
  else document.activeElement.blur();
}

// "1–50 of 2,013" with Previous and Next; go(offset) is called on a click.
export function pager({ label, limit, go }) {
  const said = h("span", { class: "lab-quiet", role: "status" });
  const make = (text) => h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, text);
  const previous = make("Previous");
  const next = make("Next");
  const buttons = h("span", { class: "d-inline-flex gap-2" }, previous, next);
  const node = h("nav", { class: "lab-pager", "aria-label": label }, said, buttons);
  buttons.hidden = true;
  let offset = 0;
  previous.addEventListener("click", () => go(Math.max(0, offset - limit)));
  next.addEventListener("click", () => go(offset + limit));
  return {
    node,
    show(from, count, total) {
      offset = from;
      const number = (value) => value.toLocaleString("en");
      said.textContent = count ? `${number(from + 1)}–${number(from + count)} of ${number(total)}` : "";
      const hadFocus = [previous, next].includes(document.activeElement);
      previous.disabled = from === 0;
      next.disabled = from + count >= total;
      buttons.hidden = previous.disabled && next.disabled;
      if (hadFocus && document.activeElement?.disabled !== false) (next.disabled ? previous : next).focus();
    },
  };
}

// The page's choices live in the address, so that a reload or a link shows the same.
export function fromAddress(defaults) {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, query.get(key) ?? value]));
}

export function toAddress(values, defaults) {
  const query = queryOf(values, defaults);
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

export function queryOf(values, defaults = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value !== "" && String(value) !== String(defaults[key] ?? "")) query.set(key, value);
  }
  return query.toString();
}

// "2 min ago", exact on hover; at: unix seconds.
export function agoTime(at, now = Date.now() / 1000) {
  return h(
    "time",
    { datetime: new Date(at * 1000).toISOString(), title: exact(at), class: "text-nowrap" },
    ago(at, now),
  );
}

// Once a moment at most, and the last wish is never lost.
export function atMostEvery(milliseconds, action) {
  let last = -Infinity;
  let timer = 0;
  return () => {
    if (timer) return;
    timer = setTimeout(
      () => {
        timer = 0;
        last = performance.now();
        action();
      },
      Math.max(0, last + milliseconds - performance.now()),
    );
  };
}

export function searchBox({ label, value, placeholder = "", onInput }) {
  const input = h("input", { type: "search", class: "form-control", id: "search", placeholder, autocomplete: "off" });
  input.value = value;
  input.addEventListener("input", () => onInput(input.value.trim()));
  const node = h("div", { class: "lab-search" }, h("label", { for: "search", class: "form-label" }, label), input);
  return { node, input };
}
