// The landing page: follows the service's event stream of one server.

import { compileLog } from "./compile-log.js";
import { copyButton } from "./copy.js";
import { h } from "./dom.js";
import { add, emptyState, isQueueing, restartCheck } from "./journal.js";
import { memoryCard } from "./memory.js";
import { restarter } from "./restart.js";
import { mayStartWithoutGpu, title, words } from "./said.js";
import { draw, drawNotice, mount, startAnew, withoutGpu } from "./server-view.js";

const LONGEST_PAUSE_S = 30;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const page = {
    config,
    state: emptyState(),
    server: { user: config.user, server: config.server },
    offset: 0, // the service's clock minus ours, in seconds
    attempts: 0,
    isUnknown: false,
    source: null,
    timer: null,
    isDrawing: false,
  };
  const now = () => Date.now() / 1000 + page.offset;
  const copy = copyButton(() => `${config.reportUrl}?${new URLSearchParams({ _xsrf: config.xsrf })}`);
  const stop = h("a", { class: "btn btn-outline-contrast btn-sm", href: config.homeUrl }, "Stop server…");
  const log = compileLog();
  page.restart = restarter(page);
  page.parts = mount(root, [...copy.nodes, log.button, stop]);
  root.append(copy.box, log.node);
  const memory = memoryCard(config, page.parts.cards);
  page.redraw = () => {
    page.isDrawing = false;
    // The hub's home page has a button for one's own servers only.
    stop.hidden = !config.isOwner || Boolean(page.state.end) || page.isUnknown || isQueueing(page.state);
    const look = { config, now: now(), standing: page.server, primary: primary(page) };
    if (page.isUnknown) Object.assign(look, { verdict: neverStarted(config), isEmpty: true });
    draw(page.parts, page.state, look);
    log.draw(page.state);
    memory.tick(page.state, now());
    document.title = `${look.verdict?.sentence ?? title(page.state, words(config))} · Lab`;
  };
  page.redraw();
  connect(page);
  // The hub's pending page leads here: it may not ask the service itself.
  if (location.hash === "#report") copy.show();
  setInterval(page.redraw, 1000);
  addEventListener("online", () => retryNow(page));
}

function soon(page) {
  if (page.isDrawing) return;
  page.isDrawing = true;
  requestAnimationFrame(page.redraw);
}

function primary({ config, state, server, isUnknown, restart }) {
  if (isUnknown || state.end) return config.isOwner ? ways(config, state, server) : [];
  // The hub takes such a request from its own pages only, so the choice is made there.
  if (isQueueing(state)) {
    return config.isOwner ? [{ label: "Leave, or start without a GPU…", href: pendingUrl(config) }] : [];
  }
  if (!config.canOpen) return [];
  const open = { label: "Open JupyterLab ▸", href: state.isUp ? config.labUrl : null };
  if (!config.isOwner || !restartCheck(state)) return [open];
  return [{ label: "Restart your server…", act: restart }, { ...open, isSecond: true }];
}

// Into a new start. What failed may have failed because of what was chosen, so that is asked anew.
function ways(config, { end, seq }, { start_url: same, request }) {
  if (end && end.kind !== "failed" && same) {
    return [
      { label: "Start it again", href: same },
      { label: "Choose anew…", href: config.spawnUrl, isSecond: true },
    ];
  }
  const again = startAnew(config, end?.kind === "failed" ? "Try again" : "Start it");
  return mayStartWithoutGpu({ end, seq }) ? [again, withoutGpu(config, request?.course)] : [again];
}

function pendingUrl({ spawnUrl }) {
  return spawnUrl.replace("/spawn/", "/spawn-pending/");
}

function neverStarted(config) {
  return {
    tone: "off",
    sentence: `${words(config).Your} server has never been started.`,
    detail: "When it starts, this page shows which GPU it got and whether that is healthy.",
  };
}

function address(page, more) {
  const query = new URLSearchParams({ _xsrf: page.config.xsrf, ...more });
  if (page.server.start) {
    query.set("start", page.server.start);
    query.set("after", String(page.state.seq));
  }
  return `${page.config.eventsUrl}?${query}`;
}

// EventSource's own reconnect would repeat the first address; ours says what we have already.
function connect(page) {
  const source = new EventSource(address(page, {}));
  page.source = source;
  source.onopen = () => {
    page.attempts = 0;
    page.isUnknown = false;
    drawNotice(page.parts);
    soon(page);
  };
  source.onmessage = (message) => {
    add(page.state, JSON.parse(message.data));
    soon(page);
  };
  source.addEventListener("restart", () => {
    page.state = emptyState();
    soon(page);
  });
  source.addEventListener("server", (message) => takeServer(page, JSON.parse(message.data)));
  source.onerror = () => {
    source.close();
    if (page.source === source) findOut(page);
  };
}

function takeServer(page, server) {
  page.server = server;
  page.offset = server.now - Date.now() / 1000;
  // A start that the reconcile ended has no last word of the hub in its journal.
  if (server.outcome && !page.state.end) {
    setTimeout(() => {
      if (page.server.start !== server.start || page.state.end) return;
      page.state.end = {
        kind: server.outcome === "ready" ? "stopped" : server.outcome,
        at: server.ended_at,
        message: "",
        remedy: "",
        code: "",
        logTail: [],
      };
      soon(page);
    }, 300);
  }
  soon(page);
}

// The stream ended: an EventSource does not say why, so ask once.
async function findOut(page) {
  page.source = null;
  let status = 0;
  let code = "";
  try {
    const answer = await fetch(address(page, { format: "json" }), { cache: "no-store" });
    status = answer.status;
    if (status === 403) code = (await answer.json()).code;
  } catch {
    // Away, or a 403 that says no more.
  }
  if (status === 401) {
    tellOld(page, "Your session has ended. ", "Log in again");
    return;
  }
  // A login in another tab made another proof; this page has the old one.
  if (status === 403 && code === "xsrf") {
    tellOld(page, "This page is older than your login. ", "Load it again");
    return;
  }
  if (status === 403) {
    drawNotice(page.parts, "You may not see this server any more.");
    return;
  }
  if (status === 404) {
    page.isUnknown = true;
    drawNotice(page.parts);
    page.redraw();
    again(page, 5);
    return;
  }
  page.attempts += 1;
  if (status !== 200 || page.attempts > 2) tellLost(page, status);
  again(page, status === 200 ? 0.5 : Math.min(LONGEST_PAUSE_S, 2 ** page.attempts / 2));
}

// Without the fragment: a link to the very same address would load nothing.
function tellOld(page, why, remedy) {
  const link = h("a", { href: location.href.split("#")[0], class: "alert-link" }, remedy);
  drawNotice(page.parts, why, link, " to see news; your server is not affected.");
}

function tellLost(page, status) {
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast ms-2" }, "Try now");
  button.addEventListener("click", () => retryNow(page));
  const why =
    status === 429
      ? "Too many pages watch this server; close some. Trying again…"
      : "Connection lost. Your server is not affected. Trying again…";
  drawNotice(page.parts, why, button);
}

function again(page, pause_s) {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => retryNow(page), 1000 * pause_s);
}

function retryNow(page) {
  clearTimeout(page.timer);
  if (!page.source) connect(page);
}

start(document.getElementById("lab-server"));
