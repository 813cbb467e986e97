// "Who gets what": every user and group with their grants, by pool; add, change, remove, import, export.

import { h, renew } from "../dom.js";
import { connectApi, proof } from "./api.js";
import { openGrant, openPin } from "./grant-form.js";
import { openImport } from "./grants-csv.js";
import { matrix, subjectOf } from "./grants-table.js";
import {
  atMostEvery,
  fromAddress,
  loader,
  pager,
  queryOf,
  renewNamed,
  searchBox,
  stateBox,
  toAddress,
} from "./list-page.js";
import { follow } from "./live.js";
import { debounce } from "./ui.js";

const DEFAULTS = { search: "", kind: "all", only: "all", offset: 0 };
const KINDS = { all: "All", everyone: "Everyone", group: "Groups", user: "Users" };
const LIMIT = 50;
const RELOAD_MS = 1000;

export function start(root) {
  const config = JSON.parse(root.dataset.config);
  const api = connectApi(config);
  const page = { config, api, choice: fromAddress(DEFAULTS), people: null, grants: new Map(), etag: null, panel: null };
  page.site = {
    api,
    pools: [],
    gpus: [],
    canAdmin: config.canAdmin,
    onSaved: () => page.load({ quiet: true }),
    onMore: (grant, where) => add(page, { ...grant, where }),
  };
  page.state = stateBox(() => page.load());
  page.first = h("div", {});
  page.out = h("div", {});
  page.pager = pager({ label: "Pages of users and groups", limit: LIMIT, go: (offset) => choose(page, { offset }) });
  page.load = loader({
    api,
    state: page.state,
    path: () => `people?${queryOf({ ...page.choice, limit: LIMIT })}`,
    draw: (data) => take(page, data),
    saying: "Looking up users, groups and grants…",
  });
  root.append(heading(page), tools(page), page.state.node, page.first, page.out, page.pager.node);
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(page, button.dataset);
  });
  page.load();
  const reload = atMostEvery(RELOAD_MS, () => othersChanged(page));
  const news = (etag) => {
    // The first word is what the page is about to show anyway.
    if (page.etag !== null && etag !== page.etag) reload();
    page.etag = etag;
  };
  follow(config, { grants: news, snapshot: ({ grants }) => news(grants) });
}

function heading(page) {
  const { config } = page;
  const button = (label, style, action) => {
    const node = h("button", { type: "button", class: `btn btn-sm btn-${style}` }, label);
    node.addEventListener("click", action);
    return node;
  };
  const href = () => `${config.apiUrl}grants?format=csv&_xsrf=${encodeURIComponent(proof())}`;
  const csv = h("a", { class: "btn btn-sm btn-outline-contrast", href: href(), download: "grants.csv" }, "Export CSV");
  // A login in another tab changes the proof.
  csv.addEventListener("click", () => (csv.href = href()));
  const buttons = [csv];
  if (config.canAdmin) {
    buttons.push(button("Import CSV…", "outline-contrast", () => (page.panel = openImport(page.site))));
    buttons.push(button("Add a grant…", "primary", () => add(page, {})));
  }
  return h(
    "div",
    { class: "lab-heading" },
    h("h1", { class: "h3" }, "Who gets what"),
    h("div", { class: "lab-heading-actions" }, ...buttons),
  );
}

function tools(page) {
  const searched = debounce((search) => choose(page, { search, offset: 0 }), 300);
  const search = searchBox({
    label: "Search users and groups",
    value: page.choice.search,
    placeholder: "A name",
    onInput: searched,
  });
  const kinds = Object.entries(KINDS).map(([value, label]) => {
    const input = h("input", { type: "radio", class: "form-check-input", name: "kind", id: `kind-${value}`, value });
    input.checked = value === page.choice.kind;
    input.addEventListener("change", () => choose(page, { kind: value, offset: 0 }));
    const text = h("label", { class: "form-check-label", for: input.id }, label);
    return h("div", { class: "form-check form-check-inline" }, input, text);
  });
  const only = h("input", { type: "checkbox", class: "form-check-input", id: "only", name: "only" });
  only.checked = page.choice.only === "granted";
  only.addEventListener("change", () => choose(page, { only: only.checked ? "granted" : "all", offset: 0 }));
  const onlyLabel = h("label", { class: "form-check-label", for: "only" }, "Only those with grants of their own");
  return h(
    "div",
    { class: "lab-tools" },
    search.node,
    h("fieldset", {}, h("legend", {}, "Show"), ...kinds),
    h("div", { class: "form-check" }, only, onlyLabel),
  );
}

function choose(page, change) {
  Object.assign(page.choice, change);
  toAddress(page.choice, DEFAULTS);
  page.load();
}

// ---- showing ------------------------------------------------------------------------------------

function take(page, people) {
  const offset = Number(page.choice.offset);
  if (people.rows.length === 0 && people.total > 0 && offset > 0) return choose(page, { offset: 0 });
  page.people = people;
  page.site.pools = people.pools;
  page.site.gpus = people.gpus;
  page.grants = new Map(people.rows.flatMap(({ grants }) => grants.map((grant) => [grant.id, grant])));
  const { canAdmin } = page.config;
  const caption = `Grants of users and groups, ${offset + 1} to ${offset + people.rows.length} of ${people.total}`;
  const nodes = people.rows.length
    ? [
        h(
          "div",
          { class: "lab-scroll", role: "region", tabindex: "0", "aria-label": "Who gets what" },
          matrix(people, { canAdmin, caption }),
        ),
      ]
    : [nobody(page)];
  const place = placeOfFocus(page.out);
  renewNamed(page.out, nodes);
  if (place && document.activeElement === document.body) place.back();
  teach(page, people);
  page.pager.show(offset, people.rows.length, people.total);
  return undefined;
}

// The grant that has the focus may be gone after this: then its cell's button gets it, and without
// such a row the table, so that the keyboard goes on from there.
function placeOfFocus(out) {
  const chip = document.activeElement;
  const line = out.contains(chip) ? chip.closest("tr") : null;
  if (!line) return null;
  const columnOf = (node) => node.closest("td")?.dataset.column;
  const column = columnOf(chip);
  const { kind, name } = line.querySelector("button[data-name]")?.dataset ?? {};
  const back = () => {
    const buttons = [...out.querySelectorAll("button[data-name]")].filter(
      (one) => one.dataset.kind === kind && one.dataset.name === name && one.offsetParent,
    );
    const near = buttons.find((one) => columnOf(one) === column) ?? buttons[0];
    (near ?? out.querySelector("[role=region]"))?.focus();
  };
  return { back };
}

// A lab without any grant: who can do nothing yet, and the one click that changes it.
async function teach(page, { rows }) {
  const isAll = page.choice.search === "" && page.choice.kind === "all" && page.choice.only === "all";
  let isEmpty = isAll && rows.length > 0 && rows.every(({ grants }) => grants.length === 0);
  try {
    // The first page tells nothing of the others.
    if (isEmpty) isEmpty = (await page.api.call("GET", "grants")).data.grants.length === 0;
  } catch {
    isEmpty = false;
  }
  renew(page.first, isEmpty ? [noGrants(page)] : []);
}

function noGrants({ config, people }) {
  const users = people.rows.find(({ kind }) => kind === "everyone")?.members;
  const who = users ? `none of the ${users.toLocaleString("en")} users` : "nobody";
  const button = h(
    "button",
    { type: "button", class: "btn btn-primary", "data-do": "everyone" },
    "Give everyone one GPU or slot…",
  );
  return h(
    "div",
    { class: "alert alert-info", role: "note" },
    h(
      "p",
      { class: "mb-2" },
      `There is no grant yet: ${who} can start a server with a GPU. Servers without a GPU start.`,
    ),
    config.canAdmin ? button : "An admin of the lab can add the first.",
  );
}

function nobody({ choice, config }) {
  const { search, only } = choice;
  if (!search)
    return h("p", {}, only === "granted" ? "None of these has a grant of their own." : "There is none of these.");
  const said = h("p", {}, `No user and no group has “${search}” in its name.`);
  if (!config.canAdmin || search.length > 255) return said;
  const make = (action, label, look) =>
    h(
      "button",
      { type: "button", class: `btn btn-${look}`, "data-do": action, "data-kind": "user", "data-name": search },
      label,
    );
  const buttons = [
    make("pin", `Pin a GPU to ${search}…`, "primary"),
    make("add", `Add a grant for ${search}…`, "outline-contrast"),
  ];
  return h(
    "div",
    {},
    said,
    h("p", {}, "Somebody who never logged in may get a grant all the same: it counts from the first login."),
    h("div", { class: "lab-heading-actions" }, ...buttons),
  );
}

// ---- acting -------------------------------------------------------------------------------------

function act(page, { do: action, id, kind, name, column }) {
  if (action === "edit" && page.grants.has(id)) page.panel = openGrant(page.site, { grant: page.grants.get(id) });
  if (action === "pin") page.panel = openPin(page.site, name);
  if (action === "everyone") add(page, { to: "everyone" });
  if (action === "add") add(page, { ...subjectOf({ kind, name }), ...placeOf(column) });
}

function placeOf(column = "any") {
  if (column === "pinned") return { where: "gpus" };
  return column.startsWith("pool:") ? { pool: column.slice(5) } : {};
}

function add(page, start) {
  page.panel = openGrant(page.site, { start });
}

// The table follows quietly; an open panel is told, and keeps what is typed.
async function othersChanged(page) {
  page.load({ quiet: true });
  const { panel } = page;
  if (!panel?.isOpen()) return;
  try {
    const { data } = await page.api.call("GET", "grants");
    panel.otherChange(panel.id === null ? undefined : (data.grants.find(({ id }) => id === panel.id) ?? null));
  } catch {
    // Saving finds out, too.
  }
}

start(document.getElementById("admin"));
