// What a change would do, in sentences, before it is saved.

import { h, renew } from "../dom.js";
import { readable } from "./grant-words.js";
import { debounce } from "./ui.js";

const WAIT_MS = 300;
const MOST = 12;
const LOGGED_OUT = "Your session has ended: no preview before you log in again. What you typed stays here.";

// ask() -> {body, type, missing} is what is previewed; onAnswer(answer) hears every answer, null when there is none.
export function makePreview({ api, ask, onAnswer = () => {}, title = "If saved", look = "" }) {
  const said = h("div", { "aria-live": "polite" });
  const heading = h("h3", { class: "h6" }, title);
  // It may scroll by itself, which the keyboard has to reach, too.
  const node = h(
    "section",
    { class: `lab-preview ${look}`.trim(), "aria-label": title, tabindex: look ? "0" : null },
    heading,
    said,
  );
  let running = null;
  const show = (...children) => renew(said, children);
  const now = async () => {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    const { body, type, missing, isUnknownAllowed = true } = ask();
    if (missing) {
      onAnswer(null);
      show(h("p", { class: "lab-quiet" }, missing));
      return;
    }
    if (said.childElementCount === 0) show(h("p", { class: "lab-quiet" }, "Looking what would change…"));
    try {
      const query = isUnknownAllowed ? "?unknown_users=allow" : "";
      const request = { body, type, signal: mine.signal, isChange: false };
      const { data } = await api.call("POST", `grants/preview${query}`, request);
      if (mine !== running) return;
      onAnswer(data, show);
    } catch (error) {
      if (mine !== running || error.name === "AbortError") return;
      // Such as a file that is no CSV at all.
      if (error.status === 400) {
        const { faults, problems, message } = error;
        onAnswer(
          { faults: faults.length ? faults : [message], problems, warnings: [], changes: [], effects: [] },
          show,
        );
        return;
      }
      onAnswer(null);
      show(
        h(
          "p",
          {},
          error.needsLogin ? LOGGED_OUT : `The preview did not come: ${error.message} Saving is still possible.`,
        ),
      );
    }
  };
  return { node, now, soon: debounce(now, WAIT_MS), stop: () => running?.abort(), show };
}

// The sentences of an answer; rest: faults that stand beside no field; gpus: to name them by index.
export function effectNodes({ effects = [], warnings = [] }, rest = [], gpus = []) {
  const say = (sentence) => readable(sentence, gpus);
  const nodes = [];
  const faults = [...new Set(rest)].map(say);
  if (faults.length)
    nodes.push(h("p", { class: "lab-bad-text mb-1" }, "Cannot be saved so:"), lines(faults, "lab-bad-text"));
  for (const warning of warnings) nodes.push(h("p", {}, h("strong", {}, "Note: "), say(warning)));
  if (effects.length) nodes.push(lines(effects.map(say)));
  return nodes;
}

export function lines(sentences, look = "") {
  const items = (some) => some.map((one) => h("li", {}, one));
  const list = h("ul", { class: look || null }, ...items(sentences.slice(0, MOST)));
  if (sentences.length <= MOST) return list;
  const more = h(
    "details",
    { "data-key": `more:${sentences[0]}` },
    h("summary", {}, `${sentences.length - MOST} more`),
    h("ul", { class: look || null }, ...items(sentences.slice(MOST))),
  );
  return h("div", {}, list, more);
}
