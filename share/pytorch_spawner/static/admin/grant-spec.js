// A grant as the form shows it, and back: hours for seconds, local times for ISO, lines for lists.

const SHARES = ["any", "whole", "slot"];

// What the form's fields hold for a grant (or for the start of a new one).
export function toValues(grant = {}) {
  const share = grant.share ?? "any";
  return {
    to: grant.to ?? "user",
    subject: grant.subject ?? "",
    where: grant.where ?? (grant.gpus?.length ? "gpus" : "pool"),
    pool: grant.pool ?? "",
    gpus: grant.gpus ?? [],
    count: String(grant.count ?? 1),
    share: SHARES.includes(share) ? share : "mig",
    profile: share.startsWith("mig:") ? share.slice(4) : "",
    priority: String(grant.priority ?? 0),
    weekly_gpu_hours: grant.weekly_gpu_hours ? String(grant.weekly_gpu_hours) : "",
    max_lease_s: grant.max_lease_s ? String(grant.max_lease_s / 3600) : "",
    valid_from: toLocal(grant.valid_from),
    valid_until: toLocal(grant.valid_until),
    images: (grant.images ?? []).join("\n"),
  };
}

// What is sent: what is empty is left out. What is no number goes as it is, so that the API says so.
export function toSpec(values, was = {}) {
  const spec = { to: values.to };
  if (was.id) spec.id = was.id;
  if (values.to !== "everyone") spec.subject = values.subject.trim();
  if (values.where === "gpus") spec.gpus = values.gpus;
  else if (values.pool) spec.pool = values.pool;
  spec.count = number(values.count) ?? 1;
  spec.share = values.share === "mig" ? `mig:${values.profile.trim()}` : values.share;
  spec.priority = number(values.priority) ?? 0;
  const weekly = number(values.weekly_gpu_hours);
  if (weekly !== null) spec.weekly_gpu_hours = weekly;
  const lease = number(values.max_lease_s);
  if (lease !== null) spec.max_lease_s = typeof lease === "number" ? Math.round(lease * 3600) : lease;
  for (const name of ["valid_from", "valid_until"]) {
    const moment = fromLocal(values[name], was[name]);
    if (moment) spec[name] = moment;
  }
  // An image with a blank at its end would be the name of none.
  const images = values.images.split(/\s+/).filter(Boolean);
  if (images.length) spec.images = images;
  return spec;
}

function number(text) {
  const said = String(text).trim().replace(",", ".");
  if (said === "") return null;
  return Number.isNaN(Number(said)) ? said : Number(said);
}

function pad(value, length = 2) {
  return String(value).padStart(length, "0");
}

// For <input type="datetime-local">: the viewer's own zone, to the minute.
export function toLocal(iso) {
  if (!iso) return "";
  const at = new Date(iso);
  const day = `${pad(at.getFullYear(), 4)}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  return `${day}T${pad(at.getHours())}:${pad(at.getMinutes())}`;
}

// With the zone's offset at that time. An untouched field keeps its seconds.
export function fromLocal(local, was) {
  if (!local) return "";
  if (was && toLocal(was) === local) return was;
  const offset = -new Date(local).getTimezoneOffset();
  if (Number.isNaN(offset)) return local;
  const zone = `${offset < 0 ? "-" : "+"}${pad(Math.floor(Math.abs(offset) / 60))}:${pad(Math.abs(offset) % 60)}`;
  return `${local.length === 16 ? `${local}:00` : local}${zone}`;
}

// Whether it can be previewed at all; "" or what is still to be filled in.
export function missing(spec) {
  if (spec.to === "user" && !spec.subject) return "Name a user to see what would change.";
  if (spec.to === "group" && !spec.subject) return "Name a group to see what would change.";
  if (spec.gpus && spec.gpus.length === 0) return "Choose at least one GPU to see what would change.";
  if (spec.share === "mig:") return "Name a MIG profile to see what would change.";
  return "";
}

// The API's fault in the form's words: it counts hours where the API counts seconds, and its fields
// have labels.
export function faultWords({ field = "", message = "" }) {
  if (field === "max_lease_s") return "A number of hours, from 0.02 (a minute) to 8784 (366 days).";
  if (/^valid_until is not after/.test(message)) return "It has to be after “Valid from”.";
  if (field === "share" && message.includes("mig:<profile>")) return "Not the name of a MIG profile, such as 1g.10gb.";
  const [, nameless] = message.match(/^a grant to a (user|group) names/) ?? [];
  return nameless ? `Name the ${nameless}.` : message.replace(/^(more than|at least|at most) (-?\d+)\.0$/, "$1 $2");
}

// The field of the form that a problem's path stands for: "gpus.0" is "gpus".
export function fieldOf({ field = "", message = "" }) {
  const first = field.split(".").find((part) => part !== "" && Number.isNaN(Number(part))) ?? "";
  if (first) return first;
  // Faults of the grant as a whole name the field in their sentence.
  if (/subject/.test(message)) return "subject";
  if (/valid_until/.test(message)) return "valid_until";
  if (/^count is/.test(message)) return "count";
  return "";
}
