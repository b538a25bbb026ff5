// What is selected in the grid: rows, the cursor and the anchor that ranges start from. Positions are those of the order.

import { model } from "./model.js";

let marks = new Uint8Array(0); // row -> selected
let low = 0, high = -1; // no selected position lies outside
export const selection = { size: 0, cursor: 0, anchor: 0 };

export const has = (row) => marks[row] === 1;

export function clear() {
  if (marks.length !== model.state.count) marks = new Uint8Array(model.state.count);
  else if (selection.size) marks.fill(0);
  selection.size = 0;
  [low, high] = [0, -1];
}

export function put(at, on = true) {
  const row = model.order[at];
  if (row === undefined || (marks[row] === 1) === on) return;
  marks[row] = on ? 1 : 0;
  selection.size += on ? 1 : -1;
  [low, high] = high < low ? [at, at] : [Math.min(low, at), Math.max(high, at)];
}

// The one image at `at`, or with `extend` all from the anchor to it.
export function move(at, { extend = false } = {}) {
  const last = model.order.length - 1;
  if (last < 0) return;
  selection.cursor = Math.max(0, Math.min(last, at));
  if (!extend) selection.anchor = selection.cursor;
  clear();
  const [from, to] = [selection.anchor, selection.cursor].sort((a, b) => a - b);
  for (let index = from; index <= to; index++) put(index);
}

export function toggle(at) {
  Object.assign(selection, { cursor: at, anchor: at });
  put(at, !has(model.order[at]));
}

export function everything() {
  for (let index = 0; index < model.order.length; index++) put(index);
}

export function positionsSelected(most = Infinity) {
  const list = [];
  for (let index = low; index <= high && list.length < most; index++) if (has(model.order[index])) list.push(index);
  return list;
}

export const rowsSelected = (most) => positionsSelected(most).map((index) => model.order[index]);

export const lastSelected = () => Math.max(selection.cursor, selection.anchor, high);
