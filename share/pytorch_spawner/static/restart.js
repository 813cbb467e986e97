// "Restart your server…": asks once, has the service stop the server, and goes where the hub starts it
// with the same choice.

import { h } from "./dom.js";

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
    h("p", {}, "It starts again with the same image and course. If every GPU is in use by then, it may have to wait for one."),
    problem,
    h("div", { class: "lab-dialog-buttons" }, yes, no),
  );
  document.body.append(dialog);
  const parts = { dialog, problem, yes, no };
  no.addEventListener("click", () => dialog.close());
  // Escape must not hide that it is under way.
  dialog.addEventListener("cancel", (event) => yes.disabled && event.preventDefault());
  yes.addEventListener("click", () => restart(page, parts));
  return () => {
    problem.hidden = true;
    dialog.showModal();
    no.focus();
  };
}

async function restart(page, { dialog, problem, yes, no }) {
  if (yes.disabled) return;
  yes.disabled = no.disabled = true;
  yes.textContent = "Stopping your server…";
  problem.hidden = true;
  let why = "The lab service cannot be reached just now; try again in a moment.";
  try {
    const answer = await fetch(`${page.config.restartUrl}?${new URLSearchParams({ _xsrf: page.config.xsrf })}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ start: page.server.start ?? "" }),
    });
    const said = await answer.json();
    if (answer.ok) {
      yes.textContent = "Starting it again…";
      location.assign(said.start_url);
      return;
    }
    // Another tab was faster.
    if (answer.status === 409) dialog.close();
    why = String(said.message || why).slice(0, 600);
  } catch {
    // Nobody answered, or it was no answer of the service's.
  }
  yes.disabled = no.disabled = false;
  yes.textContent = "Restart now";
  problem.textContent = why;
  problem.hidden = false;
}
