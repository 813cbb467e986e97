// A GPU's state in words.

import { clockOrDay, gib, plural } from "../said.js";

export const METERS = [
  { key: "utilisation", label: "Busy", words: (value) => `${Math.round(value)} %` },
  { key: "memory_used_mib", label: "Memory", words: (value, gpu) => memoryWords(value, gpu) },
  { key: "temperature_c", label: "Temperature", words: (value) => `${Math.round(value)} °C` },
  { key: "power_w", label: "Power", words: (value) => `${Math.round(value)} W` },
];

function memoryWords(value, { memory_mib: all }) {
  return all === null ? `${gib(value)} GiB` : `${gib(value)} / ${gib(all)} GiB`;
}

// What nobody measured is unknown, and never 0.
export function meterWords({ key, words }, gpu) {
  const value = gpu.sample?.[key] ?? null;
  return value === null ? "unknown" : words(value, gpu);
}

export function modeWords(mode, gpu = {}) {
  if (mode === "exclusive") return "whole";
  if (mode === "mig") return gpu.mig_profile ? `MIG ${gpu.mig_profile}` : "MIG";
  return `${mode.split(":")[1]} slots`;
}

// A decided mode waits until nobody holds the GPU.
export function modeToCome({ mode, setting }) {
  return setting?.mode && setting.mode !== mode && mode !== "mig" ? `${modeWords(setting.mode)} once empty` : "";
}

export function isMig({ mode, mig_profile: profile }) {
  return mode === "mig" || Boolean(profile);
}

// {tone, label, text}: the badge and what stands below it.
export function stateOf(gpu) {
  if (gpu.health) return { tone: "danger", label: gpu.drained ? "Unhealthy, drained" : "Unhealthy", text: gpu.health };
  if (gpu.drained) {
    const still = gpu.leases ? ` ${plural(gpu.leases, "server")} still on it.` : "";
    return { tone: "warning", label: gpu.leases ? "Draining" : "Drained", text: `${gpu.drained}${still}` };
  }
  if (gpu.slots === 0) return { tone: "secondary", label: "Cut by MIG", text: "Its instances are handed out." };
  if (gpu.leases === 0) return { tone: "free", label: "Free", text: "" };
  if (gpu.leases < gpu.slots) return { tone: "primary", label: `${gpu.leases} of ${gpu.slots} slots`, text: "" };
  return { tone: "primary", label: "In use", text: "" };
}

export function holderName({ user, server }) {
  return server ? `${user} / ${server}` : user;
}

export function holderPath({ user, server }) {
  return `servers/${encodeURIComponent(user)}/${encodeURIComponent(server)}`;
}

// "until 16:30", "kept until 16:30"; "" for no end.
export function untilWords({ until, kept_until: kept }, now) {
  if (kept !== null && kept !== undefined) return `stopped, kept until ${clockOrDay(kept, now)}`;
  return until === null ? "no end set" : `until ${clockOrDay(until, now)}`;
}

export function subjectWords({ to, subject }) {
  if (to === "everyone") return "everyone";
  return to === "group" ? `the group ${subject}` : subject;
}

export function pinWords({ pins }) {
  return pins?.length ? `pinned to ${pins.map(subjectWords).join(", ")}` : "";
}

// What a search looks through.
export function searchable(gpu) {
  const holders = gpu.holders.flatMap(({ user, server, course }) => [user, server, course]);
  const { label, text } = stateOf(gpu);
  return ["gpu", gpu.index, gpu.name, gpu.uuid, gpu.pool, label, text, pinWords(gpu), ...holders]
    .join(" ")
    .toLowerCase();
}
