// Talks to the service's API: JSON in and out, the page's proof against forged requests, versions.

const PATIENCE_MS = 30_000;
const UNREACHABLE = "The lab did not answer. Check your connection, then try again; what you typed stays here.";

// What the service refused, or that it could not be asked at all (status 0).
export class Refused extends Error {
  constructor(status, { code = "", message = "", faults = [], problems = [], now } = {}) {
    super(message || sayStatus(status));
    this.name = "Refused";
    this.status = status;
    this.code = code;
    this.faults = faults;
    this.problems = problems;
    this.now = now; // the row as it is now (409); null: it is gone
    this.needsLogin = status === 401;
  }
}

function sayStatus(status) {
  if (status === 0) return UNREACHABLE;
  if (status === 401) return "Your session has ended. Log in again.";
  if (status === 403) return "You may not do this. An admin of the lab can give you the right.";
  if (status >= 500)
    return `The lab had an error of its own (${status}). Try again; if it stays, see the service's log.`;
  return `The lab refused this (${status}).`;
}

// config: apiUrl, xsrf. A new login changes xsrf, so it is asked for again once when it is refused.
export function connectApi(config) {
  let xsrf = config.xsrf ?? "";

  async function call(method, path, options = {}) {
    try {
      return await ask(method, path, options);
    } catch (error) {
      if (error.status !== 403 || error.code !== "xsrf") throw error;
      xsrf = (await ask("GET", "me", {})).data?.xsrf ?? "";
      return ask(method, path, options);
    }
  }

  async function ask(method, path, { body, etag, type, signal }) {
    const headers = { Accept: "application/json, text/csv;q=0.9, */*;q=0.5" };
    if (method !== "GET") headers["X-XSRFToken"] = xsrf;
    if (etag !== undefined && etag !== null) headers["If-Match"] = etag === "*" ? "*" : `"${etag}"`;
    if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
    const content = body === undefined || type ? body : JSON.stringify(body);
    const { answer, data } = await reach(config.apiUrl + path, { method, headers, body: content }, signal);
    if (!answer.ok) throw new Refused(answer.status, typeof data === "object" && data !== null ? data : {});
    return { status: answer.status, data, etag: (answer.headers.get("ETag") ?? "").replace(/^(W\/)?"|"$/g, "") };
  }

  return { call };
}

// The answer with its content; whoever aborts gets the AbortError, silence becomes a sentence.
async function reach(address, request, signal) {
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
    throw new Refused(0, { code: "unreachable", message: UNREACHABLE });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  }
}
