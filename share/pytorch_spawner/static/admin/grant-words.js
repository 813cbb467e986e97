// Says a grant in few words: what it gives, to whom, where.

import { h } from "../dom.js";

// As many as this means any number (core/grants.py, MAX_COUNT).
export const MAX_COUNT = 64;

export function amount({ count = 1, share = "any" }) {
  const profile = share.startsWith("mig:") ? share.slice(4) : "";
  const noun = profile ? `MIG ${profile}` : ({ whole: "whole GPU", slot: "slot" }[share] ?? "GPU");
  if (count >= MAX_COUNT) return profile ? `any number of ${noun}` : `any number of ${noun}s`;
  return `${count} ${noun}${count === 1 || profile ? "" : "s"}`;
}

// "1 slot · priority 5 · 20 h a week · until 1 Dec"
export function grantWords(grant, now = Date.now()) {
  const parts = [amount(grant)];
  if (grant.priority) parts.push(`priority ${grant.priority}`.replace("-", "−"));
  if (grant.weekly_gpu_hours) parts.push(`${hours(grant.weekly_gpu_hours)} h a week`);
  if (grant.max_lease_s) parts.push(`${hours(grant.max_lease_s / 3600)} h at a time`);
  if (phase(grant, now) === "later") parts.push(`from ${day(grant.valid_from, now)}`);
  if (phase(grant, now) === "over") parts.push(`ended ${day(grant.valid_until, now)}`);
  else if (grant.valid_until) parts.push(`until ${day(grant.valid_until, now)}`);
  const images = grant.images?.length ?? 0;
  if (images) parts.push(images === 1 ? "1 image only" : `${images} images only`);
  return parts.join(" · ");
}

// Whether it is in force: "now", "later" (begins in the future) or "over".
export function phase({ valid_from, valid_until }, now = Date.now()) {
  if (valid_until && Date.parse(valid_until) <= now) return "over";
  return valid_from && Date.parse(valid_from) > now ? "later" : "now";
}

export function whom({ to, subject }) {
  if (to === "everyone") return "everyone";
  return to === "group" ? `group ${subject}` : subject;
}

// "pool teaching", "any pool", "GPU 3"; gpus: the rows that tell a pinned GPU's index.
export function place(grant, gpus = []) {
  if (!grant.gpus?.length) return grant.pool ? `pool ${grant.pool}` : "any pool";
  return grant.gpus.map((uuid) => gpuName(uuid, gpus)).join(", ");
}

export function gpuName(uuid, gpus) {
  const known = gpus.find((gpu) => gpu.uuid === uuid);
  if (!known) return uuid;
  // MIG instances have the index of the GPU that they are cut from.
  const isOnly = gpus.filter(({ index }) => index === known.index).length === 1;
  return isOnly ? `GPU ${known.index}` : `GPU ${known.index} (${uuid.slice(0, 12)}…)`;
}

// A GPU's UUID says little to people; "GPU 3" does.
export function readable(text, gpus) {
  return gpus.reduce((said, { uuid }) => said.replaceAll(uuid, gpuName(uuid, gpus)), text);
}

// Where grants that this page cannot change were written.
export function origin({ source, subject, id }) {
  if (source === "config") {
    return `Written in the lab's configuration (${id}). To change it, edit the configuration and restart JupyterHub.`;
  }
  if (source === "group") {
    return `Written in the properties of the JupyterHub group ${subject}. To change it, edit the group there.`;
  }
  return "";
}

export function isEditable(grant) {
  return (grant.source ?? "ledger") === "ledger";
}

export function hours(value) {
  return String(Math.round(value * 10) / 10);
}

// "1 Dec", with the year where it is another than this one.
export function day(iso, now = Date.now()) {
  const date = new Date(iso);
  const names = { day: "numeric", month: "short" };
  if (date.getFullYear() !== new Date(now).getFullYear()) names.year = "numeric";
  return date.toLocaleDateString([], names);
}

export function exactly(grant) {
  const said = [];
  if (grant.valid_from) said.push(`from ${new Date(grant.valid_from).toLocaleString()}`);
  if (grant.valid_until) said.push(`until ${new Date(grant.valid_until).toLocaleString()}`);
  return said.join(", ");
}

// Every field in words, for reading and for comparing two states of one grant.
export function grantFacts(grant, gpus = []) {
  return [
    ["To", whom(grant)],
    ["Where", place(grant, gpus)],
    ["How much", amount(grant)],
    ["Priority", String(grant.priority ?? 0)],
    ["GPU-hours a week", grant.weekly_gpu_hours ? hours(grant.weekly_gpu_hours) : "no limit"],
    ["Longest lease", grant.max_lease_s ? `${hours(grant.max_lease_s / 3600)} h` : "the lab's own limit"],
    ["Valid", exactly(grant) || "always"],
    ["Images", grant.images?.join(", ") || "all"],
  ];
}

export function factList(facts) {
  const rows = facts.flatMap(([name, value]) => [
    h("dt", { class: "col-5 fw-normal lab-quiet" }, name),
    h("dd", { class: "col-7 text-break" }, value),
  ]);
  return h("dl", { class: "row mb-2" }, ...rows);
}
