// The panel that sets what an admin adds to the priority of a start that waits.

import { h } from "../dom.js";
import { field, openPanel } from "./ui.js";

export function openBoost({ row, name, most, save }) {
  let { etag } = row;
  const boost = field({
    label: "Boost",
    name: "boost",
    type: "number",
    min: String(-most),
    max: String(most),
    step: "1",
    value: String(row.boost),
    help: `Added to the priority, from −${most} to ${most}; 0 for none. The higher is served first.`,
  });
  openPanel({
    title: `Boost of ${name}`,
    body: [h("p", {}, row.reason), boost.node],
    save: {
      label: "Save",
      async run() {
        const value = boost.input.valueAsNumber;
        if (!Number.isInteger(value) || Math.abs(value) > most) {
          boost.setProblem(`A whole number from −${most} to ${most}.`);
          boost.input.focus();
          return false;
        }
        await save(value, etag);
        return true;
      },
      onConflict(now) {
        if (!now) return;
        ({ etag } = now);
        boost.input.value = String(now.boost);
      },
    },
  });
}
