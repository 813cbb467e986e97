// Talks to the service's API: JSON in and out, the page's proof against forged requests, versions.

import { h } from "../dom.js";

const PATIENCE_MS = 30_000;
const LOOK_MS = 100;

// What the service refused, or that it could not be asked at all (status 0).
export class Refused extends Error {
  constructor(status, { code = "", message = "", faults = [], problems = [], now } = {}, isChange = false) {
    super(message || sayStatus(status, isChange));
    this.name = "Refused";
    this.status = status;
    this.code = code;
    this.faults = faults;
    this.problems = problems;
    this.now = now; // the row as it is now (409); null: it is gone
    this.needsLogin = status === 401 || code === "xsrf";
    // An answer that never came may be that of a change that was made.
    this.isUnknown = isChange && (status === 0 || status >= 500);
  }
}

// What came of it, and why; said: what did where that is known.
export function outcome(error, said = "") {
  const first = error.isUnknown ? "It is not known whether this was done; look before you repeat it." : said;
  return [first, error.message || "The lab did not answer."].filter(Boolean).join(" ");
}

// A change that may have been made is not to be tried again unseen.
function sayStatus(status, isChange) {
  if (status === 0) {
    const again = isChange ? "" : ", then try again; what you typed stays here";
    return `The lab did not answer. Check your connection${again}.`;
  }
  if (status === 401) return "Your session has ended. Log in again.";
  if (status === 403) return "You may not do this. An admin of the lab can give you the right.";
  if (status >= 500) {
    const remedy = isChange ? "See" : "Try again; if it stays, see";
    return `The lab had an error of its own (${status}). ${remedy} the service's log.`;
  }
  return `The lab refused this (${status}).`;
}

// The page's proof. Reads need it, too: a student's own page may have the same origin as this one.
let xsrf = proofOf(document);

export function proof() {
  return xsrf;
}

function proofOf(page) {
  const root = page.getElementById("admin");
  return root ? (JSON.parse(root.dataset.config).xsrf ?? "") : null;
}

// A login in another tab makes another proof. It is on that tab's page and nowhere else.
export function loginLink(style = "") {
  const link = h("a", { href: location.href, target: "_blank", class: style }, "Log in again");
  link.addEventListener("click", (event) => {
    const tab = window.open(location.href, "_blank");
    if (!tab) return;
    event.preventDefault();
    const looking = setInterval(() => {
      try {
        const fresh = tab.closed ? null : proofOf(tab.document);
        if (fresh) xsrf = fresh;
        if (fresh || tab.closed) clearInterval(looking);
      } catch {
        // The login is at another address.
      }
    }, LOOK_MS);
  });
  return link;
}

export function connectApi(config) {
  async function call(method, path, { body, etag, type, signal, isChange = method !== "GET" } = {}) {
    const headers = { Accept: "application/json, text/csv;q=0.9, */*;q=0.5", "X-XSRFToken": xsrf };
    if (etag !== undefined && etag !== null) headers["If-Match"] = etag === "*" ? "*" : `"${etag}"`;
    if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
    const content = body === undefined || type ? body : JSON.stringify(body);
    const request = { method, headers, body: content };
    const { answer, data } = await reach(config.apiUrl + path, request, signal, isChange);
    if (!answer.ok) throw new Refused(answer.status, typeof data === "object" && data !== null ? data : {}, isChange);
    return { status: answer.status, data, etag: (answer.headers.get("ETag") ?? "").replace(/^(W\/)?"|"$/g, "") };
  }

  return { call };
}

// The answer with its content; whoever aborts gets the AbortError, silence becomes a sentence.
async function reach(address, request, signal, isChange) {
  const own = new AbortController();
  const giveUp = () => own.abort();
  const timer = setTimeout(giveUp, PATIENCE_MS);
  signal?.addEventListener("abort", giveUp);
  if (signal?.aborted) giveUp();
  try {
    const answer = await fetch(address, { ...request, cache: "no-store", signal: own.signal });
    const isJson = (answer.headers.get("Content-Type") ?? "").includes("json");
    const text = await answer.text();
    return { answer, data: isJson && text ? JSON.parse(text) : text || null };
  } catch {
    if (signal?.aborted) throw new DOMException("Aborted", "AbortError");
    throw new Refused(0, { code: "unreachable" }, isChange);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  }
}
