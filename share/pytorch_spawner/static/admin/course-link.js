// The link that students follow: it starts the course and opens a file.

import { h } from "../dom.js";
import { field, openPanel } from "./ui.js";

export function openLink({ title, link }) {
  const file = field({
    label: "File to open",
    name: "path",
    maxlength: "400",
    placeholder: "week-1/cnn.ipynb",
    help: "Inside the course; empty for its folder.",
  });
  const address = field({ label: "Link", name: "link", readonly: true });
  const copy = h("button", { type: "button", class: "btn btn-primary" }, "Copy");
  const said = h("span", { class: "lab-quiet", role: "status" });
  const write = () => {
    const path = file.input.value.trim().replace(/^\/+/, "").split("/").map(encodeURIComponent).join("/");
    address.input.value = new URL(link, location.href).href + path;
    said.textContent = "";
  };
  file.input.addEventListener("input", write);
  address.input.addEventListener("focus", () => address.input.select());
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(address.input.value);
      said.textContent = "Copied.";
    } catch {
      // Browsers give the clipboard to https and localhost only.
      address.input.focus();
      said.textContent = "Press Ctrl+C to copy.";
    }
  });
  write();
  openPanel({
    title: `Link for students of ${title}`,
    body: [
      h(
        "p",
        {},
        "Whoever belongs to the course and follows it gets a server with the course's image, GPU and notebooks, ",
        "and the file opens. Others are told who can add them.",
      ),
      file.node,
      address.node,
      h("div", { class: "lab-chips" }, copy, said),
    ],
  });
}
