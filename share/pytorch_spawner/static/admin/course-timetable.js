// The panel of a course's timetable: its sessions, one more by form, or all of a calendar's.

import { h } from "../dom.js";
import { outcome } from "./api.js";
import { seatWords, sessionTime } from "./course-words.js";
import { field, openPanel, toast } from "./ui.js";

// course: as the service says it in full. save(manifest, etag) and take(body, etag) answer with
// it as it is then.
export function openTimetable({ course, save, take }) {
  const panel = { course };
  const list = h("div", {});
  const alert = h("div", {});
  const fields = sessionFields(course);
  const redraw = () =>
    list.replaceChildren(...sessionList(panel.course, (place) => guarded(alert, () => remove(place))));
  async function change(sessions, zone, said) {
    const { manifest, etag } = panel.course;
    const timetable = sessions.length ? { timezone: zone, sessions } : {};
    panel.course = await save({ ...manifest, timetable }, etag);
    redraw();
    toast(said);
  }
  const there = () => panel.course.manifest.timetable?.sessions ?? [];
  async function remove(place) {
    await change(
      there().filter((_, at) => at !== place),
      zoneOf(panel.course),
      "The session is removed.",
    );
  }
  const calendar = calendarFields({
    async run(body) {
      const { course: fresh, sentence, notes } = await take(body, panel.course.etag);
      panel.course = fresh;
      redraw();
      fields.timezone.input.value = zoneOf(fresh);
      toast(sentence);
      return notes;
    },
  });
  redraw();
  const opened = openPanel({
    title: `Timetable of ${course.title}`,
    body: [
      h(
        "p",
        { class: "lab-small" },
        "Ten minutes before a session its seats are kept for the class; whoever has not come ten minutes after its ",
        "start gives the seat back. At all other times the seats are everybody's.",
      ),
      alert,
      list,
      h("h3", { class: "h6 mt-4" }, "Add a session"),
      h("div", { class: "lab-course-grid" }, ...Object.values(fields).map(({ node }) => node)),
      calendar,
    ],
    save: {
      label: "Add the session",
      async run() {
        const one = readSession(fields);
        if (!one || !staysInZone(fields.timezone, there(), panel.course.timezone)) return false;
        await change([...there(), one], fields.timezone.input.value.trim(), "The session is added.");
        for (const name of ["title", "until"]) fields[name].input.value = "";
        return false;
      },
    },
  });
  // Each change is made at once; there is nothing to cancel.
  [...opened.node.querySelectorAll("footer button")].at(-1).textContent = "Done";
}

async function guarded(alert, action) {
  alert.replaceChildren();
  try {
    await action();
  } catch (error) {
    alert.replaceChildren(h("div", { class: "alert alert-danger", role: "alert" }, outcome(error)));
  }
}

function zoneOf({ manifest, timezone }) {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return manifest.timetable ? timezone : own || "UTC";
}

function sessionFields(course) {
  const today = new Date().toLocaleDateString("sv");
  return {
    day: field({ label: "Day", name: "timetable.day", type: "date", value: today, required: true }),
    from: field({ label: "From", name: "timetable.from", type: "time", value: "09:00", required: true }),
    to: field({ label: "Until", name: "timetable.to", type: "time", value: "11:00", required: true }),
    until: field({ label: "Every week until", name: "timetable.until", type: "date", help: "Empty for once." }),
    seats: field({
      label: "Seats",
      name: "timetable.seats",
      type: "number",
      min: "0",
      max: "2000",
      help: "That are kept; empty for one for each student.",
    }),
    title: field({ label: "Title", name: "timetable.title", maxlength: "100" }),
    timezone: field({ label: "Time zone", name: "timetable.timezone", value: zoneOf(course), required: true }),
  };
}

function readSession({ day, from, to, until, seats, title }) {
  for (const one of [day, from, to]) {
    if (!one.input.value) {
      one.setProblem("This is needed.");
      one.input.focus();
      return null;
    }
  }
  // A session that ends "before" it starts goes past midnight.
  const last = to.input.value > from.input.value ? day.input.value : nextDay(day.input.value);
  return {
    start: `${day.input.value}T${from.input.value}:00`,
    end: `${last}T${to.input.value}:00`,
    ...(until.input.value ? { weekly_until: until.input.value } : {}),
    ...(seats.input.value ? { seats: Number(seats.input.value) } : {}),
    ...(title.input.value.trim() ? { title: title.input.value.trim() } : {}),
  };
}

// A timetable has one zone, by whose clocks all its times without an offset are meant.
function staysInZone({ input, setProblem }, slots, zone) {
  if (input.value.trim() === zone || slots.every((slot) => hasOffset(slot.start) && !slot.weekly_until)) return true;
  const remedy = `Enter ${zone}, or change it in the manifest.`;
  setProblem(`The sessions that are there are in ${zone}; this would move them all. ${remedy}`);
  input.focus();
  return false;
}

function nextDay(day) {
  return new Date(Date.parse(`${day}T00:00:00Z`) + 86_400_000).toISOString().slice(0, 10);
}

// ---- what is there ------------------------------------------------------------------------------

function sessionList(course, remove) {
  const slots = course.manifest.timetable?.sessions ?? [];
  if (slots.length === 0) return [h("p", {}, "No session is planned yet.")];
  const items = slots.map((slot, place) => {
    const words = slotWords(slot, course.timezone);
    const button = h(
      "button",
      { type: "button", class: "btn btn-sm btn-outline-contrast lab-risky", "aria-label": `Remove ${words}` },
      "Remove",
    );
    button.addEventListener("click", () => remove(place));
    const seats = seatWords(slot.seats ?? null, course.students.total);
    return h(
      "li",
      { class: "lab-course-slot" },
      h("span", {}, words, h("span", { class: "lab-sub" }, [slot.title, seats].filter(Boolean).join(" · "))),
      button,
    );
  });
  const next = course.sessions.slice(0, 5);
  return [
    h("h3", { class: "h6" }, "Next sessions, by your clock"),
    next.length
      ? h(
          "ul",
          { class: "lab-small" },
          ...next.map((one) => h("li", {}, sessionTime(one), one.title ? ` ${one.title}` : "")),
        )
      : h("p", { class: "lab-small" }, "All sessions are over."),
    course.seats_note ? h("p", { class: "lab-small" }, `! ${course.seats_note}`) : "",
    h("h3", { class: "h6" }, `All of the timetable (${course.timezone})`),
    h("ul", { class: "list-unstyled lab-course-slots" }, ...items),
  ];
}

// "Tue 3 Mar 2026, 09:00–11:00, every week until 2 Jun 2026", by the clocks of the timetable.
function slotWords({ start, end, weekly_until: until }, zone) {
  const isFixed = hasOffset(start);
  const at = (text, how) =>
    new Date(isFixed ? text : `${text}Z`).toLocaleString([], { ...how, timeZone: isFixed ? zone : "UTC" });
  const day = { weekday: "short", day: "numeric", month: "short", year: "numeric" };
  const hours = { hour: "2-digit", minute: "2-digit" };
  const weekly = until
    ? `, every week until ${new Date(`${until}T00:00:00Z`).toLocaleDateString([], { ...day, timeZone: "UTC" })}`
    : "";
  return `${at(start, day)}, ${at(start, hours)}–${at(end, hours)}${weekly}`;
}

function hasOffset(text) {
  return /(Z|[+-]\d\d:?\d\d)$/.test(text);
}

// ---- a calendar ---------------------------------------------------------------------------------

function calendarFields({ run }) {
  const file = field({ label: "Calendar file (.ics)", name: "ics", type: "file", accept: ".ics,text/calendar" });
  const seats = field({
    label: "Seats of each session",
    name: "seats",
    type: "number",
    min: "0",
    max: "2000",
    help: "Empty for one for each student.",
  });
  const button = h("button", { type: "button", class: "btn btn-sm btn-outline-contrast" }, "Import it");
  const said = h("div", { class: "mt-2" });
  button.addEventListener("click", async () => {
    const [chosen] = file.input.files;
    if (!chosen) {
      file.setProblem("Choose a file.");
      file.input.focus();
      return;
    }
    await guarded(said, async () => {
      const notes = await run({
        ics: await chosen.text(),
        seats: seats.input.value ? Number(seats.input.value) : null,
      });
      said.replaceChildren(
        notes.length ? h("ul", { class: "lab-small", role: "status" }, ...notes.map((note) => h("li", {}, note))) : "",
      );
    });
  });
  // Enter would press the panel's own button, which adds a session.
  seats.input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (!event.repeat) button.click();
  });
  return h(
    "details",
    { class: "mt-3" },
    h("summary", {}, "Import a calendar"),
    h("p", { class: "lab-small mt-2" }, "Its sessions take the place of all that are above."),
    file.node,
    seats.node,
    button,
    said,
  );
}
