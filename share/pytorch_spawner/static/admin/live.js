// Follows the service: one stream a page, what it tells, and that it is lost.

import { h } from "../dom.js";
import { clock } from "../said.js";
import { connectApi, loginLink, proof } from "./api.js";

const EVENTS = ["snapshot", "gpus", "samples", "queue", "grants", "counts", "alive"];
const TELL_AFTER_MS = 5000;
const LONGEST_PAUSE_S = 30;
// The service says something every ten seconds; a proxy or a network may hold it back unsaid.
const SILENCE_MS = 30_000;
const LOOK_MS = 5_000;
// A browser gives an address six connections in all: a page that nobody sees lets go of its own.
const HIDDEN_MS = 60_000;

// handlers: a function for each event; `over` when the right to see it ended, `live(isLive)` when
// the stream comes and goes. Returns {now(): the service's clock in seconds, close()}.
export function follow(config, handlers) {
  const page = {
    config,
    handlers,
    source: null,
    offset: 0, // the service's clock minus ours, in seconds
    lostAt: null,
    attempts: 0,
    retry: 0,
    telling: 0,
    resting: 0,
    heardAt: Date.now(),
    isResting: false,
    isOver: false,
  };
  connect(page);
  setInterval(() => listen(page), LOOK_MS);
  addEventListener("online", () => page.isResting || connect(page));
  document.addEventListener("visibilitychange", () => rest(page));
  return { now: () => Date.now() / 1000 + page.offset, close: () => end(page) };
}

function connect(page) {
  if (page.isOver) return;
  clearTimeout(page.retry);
  page.source?.close();
  page.heardAt = Date.now();
  const source = new EventSource(`${page.config.apiUrl}live?_xsrf=${encodeURIComponent(proof())}`);
  page.source = source;
  for (const name of EVENTS) {
    source.addEventListener(name, (message) => {
      if (page.source === source) take(page, name, JSON.parse(message.data));
    });
  }
  source.addEventListener("over", (message) => {
    const said = JSON.parse(message.data);
    end(page);
    tell(page, `${said.message} What is shown here is as it was at ${clock(Date.now() / 1000)}.`);
    page.handlers.over?.(said);
  });
  source.onerror = () => {
    if (page.source === source) lost(page, source.readyState === EventSource.CLOSED);
  };
}

function listen(page) {
  if (!page.source || page.isOver || Date.now() - page.heardAt < SILENCE_MS) return;
  page.heardAt = Date.now();
  lost(page, false);
  connect(page);
}

function take(page, name, data) {
  page.heardAt = Date.now();
  if (name === "snapshot") {
    page.offset = data.now - Date.now() / 1000;
    back(page);
    showCounts(data.counts);
  }
  if (name === "counts") showCounts(data);
  page.handlers[name]?.(data);
}

function back(page) {
  clearTimeout(page.telling);
  page.telling = 0;
  page.attempts = 0;
  page.lostAt = null;
  tell(page, "");
  page.handlers.live?.(true);
}

// An EventSource comes back by itself after a stream that ended, not after a refusal. A moment
// without it is said to nobody.
function lost(page, isRefused) {
  page.lostAt ??= Date.now() / 1000;
  page.telling ||= setTimeout(() => tellLost(page), TELL_AFTER_MS);
  if (!isRefused) return;
  page.source = null;
  page.attempts += 1;
  page.retry = setTimeout(() => findOut(page), 1000 * Math.min(LONGEST_PAUSE_S, 2 ** page.attempts / 2));
}

// Why it was refused: an EventSource does not say.
async function findOut(page) {
  try {
    await connectApi(page.config).call("GET", "me");
    connect(page);
  } catch (error) {
    if (error.needsLogin) {
      tellLoggedOut(page);
      page.retry = setTimeout(() => findOut(page), 1000 * LONGEST_PAUSE_S);
    } else if (error.status === 403) {
      end(page);
      tell(page, "You may not see this any more. An admin of the lab can tell why.");
      page.handlers.over?.(error);
    } else {
      lost(page, true);
    }
  }
}

function tellLost(page) {
  if (page.lostAt === null || page.isOver) return;
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast ms-2" }, "Try now");
  button.addEventListener("click", () => connect(page));
  tell(page, `Not live since ${clock(page.lostAt)}; trying again…`, button);
  page.handlers.live?.(false);
}

function tellLoggedOut(page) {
  clearTimeout(page.telling);
  page.telling = 0;
  const link = loginLink("alert-link");
  const since = clock(page.lostAt ?? Date.now() / 1000);
  tell(
    page,
    `Your session has ended; not live since ${since}. `,
    link,
    " (opens in a new tab), and this page goes on.",
  );
  page.handlers.live?.(false);
}

function tell(page, ...children) {
  const place = document.getElementById("admin-notice");
  if (!place) return;
  const isEmpty = children.length === 1 && children[0] === "";
  place.replaceChildren(...(isEmpty ? [] : [h("div", { class: "alert alert-warning" }, ...children)]));
}

function end(page) {
  page.isOver = true;
  clearTimeout(page.retry);
  clearTimeout(page.telling);
  clearTimeout(page.resting);
  page.source?.close();
  page.source = null;
}

function rest(page) {
  clearTimeout(page.resting);
  if (page.isOver) return;
  if (document.hidden) {
    page.resting = setTimeout(() => {
      clearTimeout(page.retry);
      clearTimeout(page.telling);
      page.telling = 0;
      page.source?.close();
      page.source = null;
      page.isResting = true;
    }, HIDDEN_MS);
  } else if (page.isResting) {
    page.isResting = false;
    connect(page);
  }
}

function showCounts(counts) {
  const place = document.getElementById("admin-counts");
  if (!place || !counts) return;
  const parts = [`${counts.in_use} of ${counts.gpus} in use`, `${counts.waiting} waiting`];
  if (counts.needs_you) parts.push(`${counts.needs_you} ${counts.needs_you === 1 ? "needs" : "need"} you`);
  const text = parts.join(" · ");
  if (place.textContent !== text) place.textContent = text;
}
