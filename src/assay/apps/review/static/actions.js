// What keys and buttons do to the selected images, as decisions for the ledger.

import { say, images } from "./dom.js";
import { decide, redo, undo } from "./decisions.js";
import { known, head, load, model, view } from "./model.js";
import { reveal } from "./grid.js";
import { clear, has, move, put, rowsSelected, selection } from "./selection.js";

const MOST = 10_000; // images of one decision: its request stays under the server's limit

// The images that an action is for, `most` of them: the selection, or else the one under the cursor.
export function chosen(most) {
  if (selection.size) return rowsSelected(most);
  const row = model.order[selection.cursor];
  return row === undefined ? [] : [row];
}

// Runs `each` (data -> decisions) on the chosen images; `advance` goes to the next one that is undecided.
async function act(each, { advance = true, words }) {
  const rows = chosen(MOST);
  if (!rows.length) return say("No image is selected.");
  if (selection.size > MOST) return say(`${images(selection.size)} are too many for one decision. Select at most ${images(MOST)}.`, "bad");
  if (!rows.every(known)) await load(rows);
  const decisions = rows.flatMap((row) => each(view(row)).map((decision) => ({ row, tag: null, new: null, ...decision })));
  if (!decisions.length) return say(words.none);
  const changed = new Set(decisions.map((decision) => decision.row));
  const end = advance && !goOn(rows.length === 1);
  decide(decisions);
  const left = rows.length - changed.size;
  const rest = left ? `; ${left} left as they are, ${words.none.toLowerCase()}` : "";
  say(`${images(changed.size)}: ${words.done}${rest}${end ? ". The end of this queue; ] opens the next." : ""}`);
}

// Selects the next image that is undecided; false at the end.
function goOn(single) {
  let at = Math.max(selection.cursor, selection.anchor) + 1;
  if (!single) while (at < model.order.length && has(model.order[at])) at++;
  const name = head().name;
  while (at < model.order.length && view(model.order[at])?.decided.includes(name)) at++;
  if (at >= model.order.length) {
    clear();
    return false;
  }
  move(at);
  reveal(at);
  return true;
}

export function accept() {
  const { name, kind } = head();
  return act((data) => {
    const suggestion = data.suggestion?.[name];
    if (!suggestion) return [];
    const { class: value, probability } = suggestion;
    if (kind === "multilabel") return [{ head: name, tag: value, action: "set", new: probability >= 0.5 ? "1" : "0" }];
    return [data.labels[name] === value ? { head: name, action: "keep" } : { head: name, action: "set", new: value }];
  }, { words: { done: "suggestion accepted", none: model.state.features ? "Nothing is suggested." : "Nothing is suggested before the features are computed." } });
}

export function keep() {
  const { name } = head();
  return act((data) => (data.labels[name] ? [{ head: name, action: "keep" }] : []), {
    words: { done: "label is right", none: "There is no label to confirm." },
  });
}

export function unset() {
  const { name } = head();
  return act(() => [{ head: name, action: "unset" }], { words: { done: "label unknown", none: "" } });
}

export function drop() {
  const { name } = head();
  return act(() => [{ head: name, action: "drop" }], { words: { done: "dropped, no valid image", none: "" } });
}

export function give(value) {
  const { name, kind } = head();
  if (kind === "multilabel") return toggleTag(value);
  return act((data) => [data.labels[name] === value ? { head: name, action: "keep" } : { head: name, action: "set", new: value }], {
    words: { done: value, none: "" },
  });
}

// A tag that all of the selection have goes from all; else all get it.
function toggleTag(tag) {
  const { name } = head(), rows = chosen(MOST).filter(known), on = (labelCounts(rows).get(tag) ?? 0) < rows.length;
  const wanted = on ? 1 : 0;
  return act((data) => (data.labels[name]?.[tag] === wanted ? [] : [{ head: name, tag, action: "set", new: String(wanted) }]), {
    advance: false,
    words: { done: (on ? "+ " : "− ") + tag, none: "Nothing to change." },
  });
}

// How many of these images have each class, or tag, of the head.
export function labelCounts(rows) {
  const { name, kind } = head(), counts = new Map();
  for (const row of rows) {
    const label = view(row)?.labels[name] ?? null;
    const values = kind === "multilabel" ? Object.keys(label ?? {}).filter((tag) => label[tag] === 1) : label === null ? [] : [label];
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return counts;
}

export const takeBack = () => turn(undo, "Taken back");
export const again = () => turn(redo, "Done again");

async function turn(go, words) {
  try {
    const rows = await go();
    await load(rows);
    const at = rows.map((row) => model.position[row]).filter((index) => index >= 0).sort((a, b) => a - b);
    if (at.length) {
      move(at[0]);
      for (const index of at) put(index);
      reveal(at[0]);
    }
    say(rows.length ? `${words}: ${images(rows.length)}` : "There is nothing more of that.");
  } catch (error) {
    say(error.message, "bad");
  }
}
