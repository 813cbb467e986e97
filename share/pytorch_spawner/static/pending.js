// The hub's pending page: follows the hub's own progress stream, whose events carry our journal.

import { add, emptyState, judge, report, warmupProgress } from "./journal.js";
import { copyButton } from "./copy.js";
import { draw, drawNotice, h, mount, words } from "./server-view.js";

export function start(root, config) {
  const page = { config, state: emptyState(), offset: null, source: null, attempts: 0, isOver: false };
  const now = () => Date.now() / 1000 + (page.offset ?? 0);
  const server = { user: config.user, server: config.server };
  const copy = copyButton(() => report(page.state, server, words(config), now()));
  page.cancel = h("button", { type: "button", class: "btn btn-outline-danger btn-sm" }, "Cancel the start");
  page.cancel.addEventListener("click", () => cancel(page));
  page.log = h("ul", { class: "lab-list lab-small" });
  const details = h("details", { class: "lab-fold" }, h("summary", {}, "Event log"), page.log);
  page.parts = mount(root, [...copy.nodes, page.cancel]);
  root.append(copy.box, details);
  page.redraw = () => {
    page.cancel.hidden = Boolean(page.state.end);
    const primary = page.state.end ? [{ label: "Try again", href: config.spawnUrl }] : [{ label: "Open JupyterLab ▸", href: null }];
    draw(page.parts, page.state, { config, now: now(), primary });
    document.title = judge(page.state, words(config)).sentence;
  };
  page.redraw();
  connect(page);
  setInterval(page.redraw, 1000);
}

function connect(page) {
  const source = new EventSource(page.config.progressUrl);
  page.source = source;
  let isFirst = true;
  source.onopen = () => {
    // Each connection replays everything.
    page.state = emptyState();
    page.log.replaceChildren();
    page.attempts = 0;
    if (!page.keepNotice) drawNotice(page.parts);
    page.keepNotice = false;
  };
  source.onmessage = (message) => {
    isFirst = false;
    take(page, JSON.parse(message.data));
  };
  source.onerror = () => {
    source.close();
    if (page.source === source && !page.isOver) lost(page, isFirst);
  };
}

function take(page, said) {
  const event = said.lab;
  if (event) {
    const drift = event.at - Date.now() / 1000;
    // The freshest event tells the hub's clock best: others are older by as much as they waited.
    page.offset = page.offset === null ? drift : Math.max(page.offset, drift);
    add(page.state, event);
  }
  if (said.message) page.log.append(h("li", {}, String(said.message)));
  if (said.failed) end(page, String(said.message ?? ""));
  if (said.ready) leave(page);
  page.redraw();
}

function end(page, message) {
  page.isOver = true;
  page.source?.close();
  page.state.end ??= { kind: "failed", at: Date.now() / 1000, message, remedy: "", code: "", logTail: [] };
}

// Lab answers. Who is still warming up goes to the landing page; all others where they wanted to go.
function leave(page) {
  page.isOver = true;
  page.source.close();
  page.state.isUp = true;
  if (!isSpecific(page.config) && warmupProgress(page.state).isRunning) {
    location.replace(page.config.landingUrl);
  } else {
    location.reload();
  }
}

// A "next" that names more than the server itself is where the person wants to be.
function isSpecific({ next, serverUrl, hubUrl }) {
  if (!next) return false;
  const target = new URL(next, location.href);
  const path = decodeURIComponent(target.pathname).replace(/\/+$/, "");
  const own = decodeURIComponent(serverUrl).replace(/\/+$/, "");
  const hub = hubUrl.replace(/\/+$/, "");
  const plain = [own, `${own}/lab`, `${own}/tree`, hub, `${hub}/home`, `${hub}${own}`, `${hub}/spawn`];
  return target.hash !== "" || ![...plain, ""].includes(path);
}

// The hub is away, restarts, or has forgotten this start: the page itself knows best, so load it.
async function lost(page, wasRefused) {
  page.attempts += 1;
  const isQuick = page.attempts === 1 && !wasRefused;
  if (!isQuick) drawNotice(page.parts, "Connection to the hub lost. Trying again…");
  await new Promise((done) => setTimeout(done, isQuick ? 500 : Math.min(15, 2 ** page.attempts) * 1000));
  if (page.isOver) return;
  if (isQuick) {
    connect(page);
    return;
  }
  try {
    const answer = await fetch(location.href, { cache: "no-store", redirect: "manual" });
    if (answer.status < 502) {
      location.reload();
      return;
    }
  } catch {
    // Still away.
  }
  lost(page, true);
}

// JupyterHub (seen with 6.1.1) says "ready" on the stream of a start that is being cancelled, a second
// before it stops the server: who listened would be sent to a server that is not there.
async function cancel(page) {
  page.isOver = true;
  page.source?.close();
  page.cancel.disabled = true;
  page.cancel.textContent = "Cancelling…";
  const { config } = page;
  const server = config.server ? `servers/${encodeURIComponent(config.server)}` : "server";
  const url = `${config.hubUrl}api/users/${encodeURIComponent(config.user)}/${server}?_xsrf=${encodeURIComponent(config.xsrf)}`;
  let answer = null;
  try {
    answer = await fetch(url, { method: "DELETE", headers: { "Content-Type": "application/json" } });
  } catch {
    // Told below.
  }
  if (answer?.ok) {
    end(page, "");
    page.state.end.kind = "cancelled";
    page.redraw();
    return;
  }
  page.isOver = false;
  connect(page);
  page.cancel.disabled = false;
  page.cancel.textContent = "Cancel the start";
  drawNotice(page.parts, "The hub could not cancel it just now. Try again in a few seconds.");
  page.keepNotice = true;
}
