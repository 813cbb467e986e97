// Elements out of values. Every text goes in as a text node; nothing is ever parsed as HTML.

// h("p", {class: "x"}, "text", node): an element; strings become text nodes.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function setText(element, text, title = "") {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
  if (element.title !== title) element.title = title;
}

// Move a button that is somewhere else, and the focus with it: the browser drops it on the way.
export function move(element, container) {
  if (element.parentElement === container) return;
  const hadFocus = document.activeElement === element;
  container.append(element);
  if (hadFocus) element.focus();
}

// Replace the children when they differ; keep folds open and the focus where it was.
export function renew(container, children) {
  const fresh = h("div", {}, ...children);
  const folds = new Map();
  for (const fold of container.querySelectorAll("details[data-key]")) folds.set(fold.dataset.key, fold.open);
  for (const fold of fresh.querySelectorAll("details[data-key]")) {
    if (folds.has(fold.dataset.key)) fold.open = folds.get(fold.dataset.key);
  }
  if (container.innerHTML === fresh.innerHTML) return;
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  const path = focused ? pathTo(container, focused) : null;
  container.replaceChildren(...fresh.childNodes);
  if (path) path.reduce((node, index) => node?.children[index], container)?.focus();
}

function pathTo(container, element) {
  const path = [];
  for (let node = element; node !== container; node = node.parentElement) {
    path.unshift([...node.parentElement.children].indexOf(node));
  }
  return path;
}
