// "Restart your server…": asks once, has the service stop the server, follows the page's stream until
// that says that it ended, and goes where the hub starts it with the same choice.

import { h } from "./dom.js";

// The stream says it first; the hub is done a moment later, and only then takes a start.
const SOON_S = 1;
// Without a word of the stream, which may be lost.
const ASK_S = 5;
const LONG_S = 60;
const MOST_LOST = 5;
const LONG = "This takes longer than usual: the hub or its Docker Engine is busy. You may close this page; as soon as the server is stopped, its page offers to start it again with the same choice.";
const UNREACHED = "The lab service cannot be reached just now; try again in a moment.";

// page: of landing.js. Returns the function that asks.
export function restarter(page) {
  const problem = h("p", { class: "lab-bad-text mb-2", role: "alert", hidden: true });
  const yes = h("button", { type: "button", class: "btn btn-primary" }, "Restart now");
  const no = h("button", { type: "button", class: "btn btn-outline-contrast" }, "Not now");
  const dialog = h(
    "dialog",
    { class: "lab-dialog", "aria-labelledby": "lab-restart" },
    h("h2", { class: "h5", id: "lab-restart" }, "Restart your server?"),
    h("p", {}, h("strong", {}, "Your files are kept."), " Running notebooks end and their variables are lost, so save what is open first."),
    h("p", {}, "It starts again with what you chose for it. If every GPU is in use by then, it may have to wait for one."),
    problem,
    h("div", { class: "lab-dialog-buttons" }, yes, no),
  );
  document.body.append(dialog);
  const parts = { dialog, problem, yes, no };
  no.addEventListener("click", () => dialog.close());
  // Escape must not hide that it is under way.
  dialog.addEventListener("cancel", (event) => no.disabled && event.preventDefault());
  yes.addEventListener("click", () => restart(page, parts));
  return () => {
    tell(parts, "");
    dialog.showModal();
    no.focus();
  };
}

async function restart(page, parts) {
  const { dialog, yes, no } = parts;
  if (yes.disabled) return;
  yes.disabled = no.disabled = true;
  yes.textContent = "Stopping your server…";
  tell(parts, "");
  try {
    const url = await stopped(page, parts);
    if (url) {
      yes.textContent = "Starting it again…";
      location.assign(url);
      return;
    }
  } catch (error) {
    // Another tab was faster.
    if (error.status === 409) dialog.close();
    tell(parts, error.status ? error.message : UNREACHED);
  }
  yes.disabled = no.disabled = false;
  yes.textContent = "Restart now";
  no.textContent = "Not now";
}

function tell({ problem }, why) {
  if (problem.textContent !== why) problem.textContent = why;
  problem.hidden = !why;
}

// Where the hub starts it again; null where somebody closed the dialog meanwhile.
async function stopped(page, parts) {
  const start = page.server.start ?? "";
  const since = Date.now();
  const headers = { "Content-Type": "application/json" };
  let said = await ask(page, page.config.restartUrl, { method: "POST", headers, body: JSON.stringify({ start }) });
  let lost = 0;
  while (!said.start_url) {
    await news(page, parts, start, since);
    if (!parts.dialog.open) return null;
    try {
      said = await ask(page, said.poll, { cache: "no-store" });
      lost = 0;
    } catch (error) {
      lost += 1;
      if (isFinal(error) || lost > MOST_LOST) throw error;
    }
  }
  return said.start_url;
}

// The stop goes on while the hub or the ledger is too busy to answer.
function isFinal({ status, code }) {
  return Boolean(status) && (code === "not-stopped" || ![429, 502, 503, 504].includes(status));
}

// The service's answer; an error without a status when there is none.
async function ask(page, address, options) {
  const url = new URL(address, location.href);
  url.searchParams.set("_xsrf", page.config.xsrf);
  const answer = await fetch(url, options);
  const said = await answer.json();
  if (answer.ok) return said;
  throw Object.assign(new Error(String(said.message || UNREACHED).slice(0, 600)), { status: answer.status, code: said.code });
}

// Wait until it is worth asking whether it is stopped.
async function news(page, parts, start, since) {
  const hasEnded = () => page.server.start !== start || Boolean(page.server.outcome || page.state.end);
  const wasOver = hasEnded();
  const until = Date.now() + 1000 * (wasOver ? SOON_S : ASK_S);
  while (Date.now() < until && parts.dialog.open && hasEnded() === wasOver) {
    await new Promise((done) => setTimeout(done, 250));
    drawProgress(parts, Math.floor((Date.now() - since) / 1000));
  }
}

function drawProgress(parts, seconds) {
  parts.yes.textContent = `Stopping your server… ${seconds} s`;
  if (seconds < LONG_S || !parts.no.disabled) return;
  tell(parts, LONG);
  parts.no.disabled = false;
  parts.no.textContent = "Close";
}
