// The hub's pending page: follows the hub's own progress stream, whose events carry our journal.

import { h, move } from "./dom.js";
import { add, emptyState, isCopying, isQueueing, warmupProgress } from "./journal.js";
import { mayStartWithoutGpu, title, words } from "./said.js";
import { draw, drawNotice, mount, startAnew, withoutGpu } from "./server-view.js";

const GONE_WITHIN_S = 60;
const LOOK_S = 0.5;
const AGAIN = "Press “Start now without a GPU” again";

export function start(root, config) {
  const page = {
    config,
    state: emptyState(),
    offset: null,
    source: null,
    attempts: 0,
    isOver: false,
    isBusy: false,
    hasLeftQueue: false, // by this page, and no new start came of it yet
  };
  const now = () => Date.now() / 1000 + (page.offset ?? 0);
  // The service makes the report, and lets no page of another address ask for it.
  const report = h(
    "a",
    {
      class: "btn btn-outline-contrast btn-sm",
      role: "button",
      href: `${config.landingUrl}#report`,
      target: "_blank",
      rel: "noopener",
    },
    "Report…",
  );
  page.cpu = h("button", { type: "button", class: "btn btn-primary" }, "Start now without a GPU");
  page.cpu.addEventListener("click", () => unlessBusy(page, startWithoutGpu));
  page.cancel = h("button", { type: "button", class: "btn btn-outline-danger btn-sm" }, "Cancel the start");
  page.cancel.addEventListener("click", () => unlessBusy(page, cancel));
  page.doing = h("p", { class: "lab-small", role: "status" });
  page.log = h("ul", { class: "lab-list lab-small" });
  const details = h("details", { class: "lab-fold" }, h("summary", {}, "Event log"), page.log);
  page.parts = mount(root, [report, page.cancel]);
  page.parts.choices.append(page.cpu, page.doing);
  root.append(details);
  page.redraw = () => {
    const isQueued = isQueueing(page.state);
    arrange(page, isQueued);
    const open = isQueued ? [] : [{ label: "Open JupyterLab ▸", href: null }];
    const primary = page.state.end ? startAgain(page) : open;
    draw(page.parts, page.state, { config, now: now(), primary });
    document.title = `${title(page.state, words(config))}${isQueued ? " · Lab" : ""}`;
  };
  page.redraw();
  connect(page);
  setInterval(page.redraw, 1000);
}

function startAgain({ config, state }) {
  const links = [startAnew(config, "Try again")];
  if (mayStartWithoutGpu(state)) links.push(withoutGpu(config, config.course));
  return links;
}

// While queueing, what one can do instead of waiting stands beside the verdict.
function arrange(page, isQueued) {
  const { cancel, cpu, parts, state } = page;
  cpu.hidden = !page.hasLeftQueue && !(isQueued && state.queue.canStartCpu);
  // Beside "Try again" it is the second choice.
  cpu.classList.toggle("btn-primary", !state.end);
  for (const look of ["btn-lg", "btn-outline-contrast"]) cpu.classList.toggle(look, Boolean(state.end));
  cancel.hidden = Boolean(state.end);
  for (const look of ["btn-sm", "btn-outline-danger"]) cancel.classList.toggle(look, !isQueued);
  cancel.classList.toggle("btn-outline-contrast", isQueued);
  if (!page.isBusy) cancel.textContent = isQueued ? "Leave the queue" : "Cancel the start";
  move(cancel, isQueued ? parts.choices : parts.actions);
}

function connect(page) {
  page.source?.close();
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
  // A place in the queue is told again with every change of it.
  const line = String(said.message ?? "");
  if (line && page.log.lastChild?.textContent !== line) page.log.append(h("li", {}, line));
  if (said.failed) end(page, String(said.message ?? ""));
  if (said.ready) leave(page);
  page.redraw();
}

function end(page, message) {
  page.isOver = true;
  page.source?.close();
  page.state.end ??= { kind: "failed", at: Date.now() / 1000, message, remedy: "", code: "", logTail: [] };
}

// Lab answers. Who is still warming up, waits for the course's notebooks, or gets none, goes to the
// landing page; all others where they wanted to go.
function leave(page) {
  page.isOver = true;
  page.source.close();
  page.state.isUp = true;
  const { state } = page;
  const hasMore = warmupProgress(state).isRunning || isCopying(state) || Boolean(state.courseNote);
  if (!isSpecific(page.config) && hasMore) {
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

// ---- leaving, and starting again without a GPU ---------------------------------------------------

// The buttons stay focusable while one of them works: a disabled one would drop the focus.
async function unlessBusy(page, work) {
  if (page.isBusy) return;
  page.isBusy = true;
  const buttons = [page.cancel, page.cpu];
  for (const button of buttons) button.setAttribute("aria-disabled", "true");
  drawNotice(page.parts);
  try {
    await work(page);
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    drawNotice(page.parts, error.message);
    if (!page.isOver) page.keepNotice = true;
  } finally {
    page.isBusy = false;
    for (const button of buttons) button.removeAttribute("aria-disabled");
    page.doing.textContent = "";
    const focused = buttons.find((button) => button === document.activeElement);
    page.redraw();
    if (focused?.hidden) page.parts.primary.querySelector("a")?.focus();
    if (!page.isOver) connect(page);
  }
}

// One sentence: what happened, and what to do.
class Trouble extends Error {}

async function cancel(page) {
  const isQueued = isQueueing(page.state);
  page.cancel.textContent = isQueued ? "Leaving…" : "Cancelling…";
  // Who leaves may want to start without a GPU after all.
  if (isQueued && page.state.queue.canStartCpu) page.cpuOptions = await chosen(page).catch(() => null);
  await stop(page);
  endAsCancelled(page, isQueued);
}

async function startWithoutGpu(page) {
  if (!page.hasLeftQueue) {
    page.doing.textContent = "Leaving the queue…";
    page.cpuOptions = await chosen(page);
    await stop(page);
    page.hasLeftQueue = true;
  }
  try {
    page.doing.textContent = "You left the queue. Waiting until the hub has ended the old start…";
    await waitUntilGone(page);
    page.doing.textContent = "Starting without a GPU…";
    await begin(page, page.cpuOptions ?? { share: "none" });
  } catch (error) {
    endAsCancelled(page, true);
    throw error;
  }
  location.reload();
  // Busy until the page is gone.
  await new Promise(() => {});
}

function endAsCancelled(page, hasLeftQueue) {
  end(page, "");
  Object.assign(page.state.end, { kind: "cancelled", hasLeftQueue });
  page.hasLeftQueue ||= hasLeftQueue && page.state.queue.canStartCpu;
}

// JupyterHub (seen with 6.1.1) says "ready" on the stream of a start that is being cancelled, a second
// before it stops the server: who listened would be sent to a server that is not there.
async function stop(page) {
  page.isOver = true;
  page.source?.close();
  const answer = await ask(page, "DELETE", serverPath(page.config));
  // 404: there is no such start any more, which is what was wanted.
  if (answer?.ok || answer?.status === 404) return;
  page.isOver = false;
  const still = isQueueing(page.state) ? " You keep your place in the queue." : "";
  if (!answer) throw new Trouble(`The hub could not be reached.${still} Try again in a few seconds.`);
  if (answer.status === 403) {
    throw new Trouble(`The hub refused it: your login may have ended.${still} Reload this page and try again.`);
  }
  throw new Trouble(`The hub could not cancel it just now.${still} Try again in a few seconds.`);
}

// What was chosen for this start stays, but for its GPUs and where those come from.
async function chosen(page) {
  const server = await look(page);
  if (!server) {
    throw new Trouble(
      "The hub could not be asked just now, so you keep your place in the queue. Try again in a few seconds.",
    );
  }
  const known = server.user_options ?? {};
  const kept = ["image", "course"].filter((name) => known[name] || (name === "course" && name in known)).map((name) => [name, known[name]]);
  return { ...Object.fromEntries(kept), share: "none" };
}

async function waitUntilGone(page) {
  const deadline = Date.now() + 1000 * GONE_WITHIN_S;
  while (Date.now() < deadline) {
    const server = await look(page);
    if (server && !server.pending && !server.ready) return;
    await new Promise((done) => setTimeout(done, 1000 * LOOK_S));
  }
  throw new Trouble(`You left the queue, but the hub has not ended the old start yet. ${AGAIN} in a minute.`);
}

// The server as the hub has it now: {} when there is none, null when the hub did not say.
async function look(page) {
  const answer = await ask(page, "GET", userPath(page.config));
  try {
    return answer.ok ? ((await answer.json()).servers[page.config.server] ?? {}) : null;
  } catch {
    return null;
  }
}

// The options are the body itself: JupyterHub 5 knows no other form, and 6 takes it still.
async function begin(page, options) {
  const answer = await ask(page, "POST", serverPath(page.config), options);
  if (answer?.ok) return;
  const next = `${AGAIN}; if it stays so, ask your admin.`;
  if (!answer) {
    throw new Trouble(`You left the queue, but the hub could not be reached for the start without a GPU. ${next}`);
  }
  const said = await answer.json().then((body) => String(body.message ?? "").slice(0, 600), () => "");
  const why = said ? `: ${said.replace(/[.\s]*$/, ".")}` : ` (error ${answer.status}).`;
  throw new Trouble(`You left the queue, but your server did not start without a GPU${why} ${next}`);
}

function userPath({ user }) {
  return `api/users/${encodeURIComponent(user)}`;
}

function serverPath(config) {
  return `${userPath(config)}/${config.server ? `servers/${encodeURIComponent(config.server)}` : "server"}`;
}

// The hub's answer; null when there was none.
async function ask({ config }, method, path, body) {
  const url = `${config.hubUrl}${path}?_xsrf=${encodeURIComponent(config.xsrf)}`;
  const headers = { "Content-Type": "application/json" };
  try {
    return await fetch(url, { method, headers, cache: "no-store", body: body && JSON.stringify(body) });
  } catch {
    return null;
  }
}
