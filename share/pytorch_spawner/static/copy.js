// "Copy report": to the clipboard where the browser allows it, else into a box to copy from by hand.

import { h } from "./dom.js";

export function copyButton(makeText) {
  const said = h("span", { class: "lab-quiet", role: "status" });
  const button = h("button", { type: "button", class: "btn btn-outline-contrast btn-sm" }, "Copy report");
  const box = h("div", {});
  button.addEventListener("click", async () => {
    const text = makeText();
    try {
      await navigator.clipboard.writeText(text);
      box.replaceChildren();
      said.textContent = "Copied.";
      setTimeout(() => (said.textContent = ""), 4000);
    } catch {
      // Browsers give the clipboard to https and localhost only.
      const area = h("textarea", { class: "form-control lab-report", rows: "12", readonly: true, "aria-label": "Report" });
      area.value = text;
      box.replaceChildren(area);
      area.focus();
      area.select();
      said.textContent = "Press Ctrl+C to copy.";
    }
  });
  return { nodes: [button, said], box };
}
