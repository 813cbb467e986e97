// "Copy report": the service's text for the helpdesk, to the clipboard where the browser allows it, else
// into a box to copy from by hand.

import { h } from "./dom.js";

// url: function that gives the report's address. Returns the button, what it says, a box, and show(),
// which puts the text into the box at once.
export function copyButton(url) {
  const said = h("span", { class: "lab-quiet", role: "status" });
  const button = h("button", { type: "button", class: "btn btn-outline-contrast btn-sm" }, "Copy report");
  const box = h("div", {});
  const parts = { said, box };
  button.addEventListener("click", () => unlessBusy(button, () => copy(parts, url())));
  return { nodes: [button, said], box, show: () => unlessBusy(button, () => show(parts, url())) };
}

async function unlessBusy(button, work) {
  if (button.getAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  try {
    await work();
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

async function copy(parts, url) {
  const text = await read(parts, url);
  if (text === null) return;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers give the clipboard to https and localhost only.
    open(parts, text);
    return;
  }
  parts.box.replaceChildren();
  parts.said.textContent = "Copied.";
  setTimeout(() => (parts.said.textContent = ""), 4000);
}

async function show(parts, url) {
  const text = await read(parts, url);
  if (text !== null) open(parts, text);
}

function open({ said, box }, text) {
  const area = h("textarea", { class: "form-control lab-report", rows: "12", readonly: true, "aria-label": "Report" });
  area.value = text;
  box.replaceChildren(area);
  area.focus();
  area.select();
  said.textContent = "Press Ctrl+C to copy.";
}

// The text; null when there is none, and then it is said why.
async function read({ said, box }, url) {
  said.textContent = "Fetching the report…";
  let why = "The lab service cannot be reached just now; try again in a moment.";
  try {
    const answer = await fetch(url, { cache: "no-store" });
    if (answer.ok) return await answer.text();
    why = String((await answer.json()).message || why).slice(0, 600);
  } catch {
    // Nobody answered, or it was no answer of the service's.
  }
  box.replaceChildren();
  said.textContent = `There is no report: ${why}`;
  return null;
}
