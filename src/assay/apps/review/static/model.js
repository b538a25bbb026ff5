// What the window knows: the state of the server, rows of the table, the order of the grid, decisions on their way.

import { get, numbers, post } from "./api.js";

export const model = {
  state: null, // of the server
  queue: "", group: "", title: "",
  order: new Int32Array(0), // position in the grid -> row
  position: new Int32Array(0), // row -> position in the grid, -1 outside
  version: -1, // of the order
  head: 0, // the head that keys act on
  units: [], // decisions that are not stored yet, oldest first
};

export const head = () => model.state.heads[model.head];

const rows = new Map(); // row -> as the server sent it
const stale = new Set(); // rows that another window or an undo may have changed
const requests = new Set(); // {rows, controller}
const KEPT = 40_000; // rows in memory, some 20 MB

// ---- the state and the order -------------------------------------------------------------------------------------

export async function readState() {
  model.state = await get("api/state");
  if (model.position.length !== model.state.count) model.position = new Int32Array(model.state.count).fill(-1);
  model.head = Math.min(model.head, model.state.heads.length - 1);
}

export async function readQueue(id, group) {
  const parameters = new URLSearchParams({ id });
  if (group) parameters.set("group", group);
  return numbers(`api/queue?${parameters}`, Int32Array);
}

export function setOrder(order, version) {
  for (const row of model.order) model.position[row] = -1;
  for (let index = 0; index < order.length; index++) model.position[order[index]] = index;
  Object.assign(model, { order, version });
}

// The new order, under the first `kept` positions, which stay as they are: nothing jumps under a hand.
export function orderBelow(values, kept) {
  const tail = values.filter((row) => { const at = model.position[row]; return at < 0 || at >= kept; });
  const merged = new Int32Array(kept + tail.length);
  merged.set(model.order.subarray(0, kept));
  merged.set(tail, kept);
  return merged;
}

// ---- rows --------------------------------------------------------------------------------------------------------

const missing = (list) => {
  const asked = new Set([...requests].flatMap((request) => request.rows));
  return list.filter((row) => (!rows.has(row) || stale.has(row)) && !asked.has(row));
};

// Resolves when all of the list are there.
export async function load(list) {
  const wanted = new Set(list);
  await Promise.all([...requests].filter((request) => request.rows.some((row) => wanted.has(row))).map((request) => request.done));
  await fetchAll(missing(list), false);
}

// Reads what is in view; requests that hold nothing of it any more are given up.
export async function loadInView(list) {
  const wanted = new Set(list);
  for (const request of requests) if (!request.rows.some((row) => wanted.has(row))) request.controller?.abort();
  await fetchAll(missing(list), true);
}

async function fetchAll(list, mayEnd) {
  const parts = [];
  for (let start = 0; start < list.length; start += 2000) parts.push(fetchRows(list.slice(start, start + 2000), mayEnd));
  await Promise.all(parts);
}

function fetchRows(part, mayEnd) {
  const request = { rows: part, controller: mayEnd ? new AbortController() : null };
  for (const row of part) stale.delete(row); // what changes from here on is read again
  request.done = post("api/rows", { rows: part }, request.controller?.signal).then((answer) => {
    if (rows.size > KEPT) rows.clear();
    for (const data of answer.rows ?? answer) rows.set(data.row, data);
  }, (error) => {
    for (const row of part) stale.add(row);
    if (error.name !== "AbortError") throw error;
  }).finally(() => requests.delete(request));
  requests.add(request);
  return request.done;
}

export function outdate(list = rows.keys()) {
  for (const row of list) stale.add(row);
}

// ---- a row as it is drawn ----------------------------------------------------------------------------------------

export const known = (row) => rows.has(row);

// The row with the decisions that are on their way: `kept` tells why one is not stored.
export function view(row) {
  let data = rows.get(row);
  if (!data) return null;
  for (const unit of model.units) {
    for (const decision of unit.byRow.get(row) ?? []) data = applied(data, decision);
    if (unit.byRow.has(row)) data = { ...data, waiting: true, problem: unit.problem };
  }
  return data;
}

function applied(data, { head: name, tag, action, new: value }) {
  const before = data.given ?? data.labels;
  if (action === "drop") return { ...data, given: before, dropped: true, decided: model.state.heads.map((each) => each.name) };
  const labels = { ...data.labels };
  if (action !== "keep") {
    const label = action === "set" ? value : null;
    labels[name] = tag === null ? label : { ...(labels[name] ?? {}), [tag]: label === null ? null : Number(label) };
  }
  return { ...data, given: before, labels, dropped: false, decided: [...new Set([...data.decided, name])] };
}

// Decisions that the server has stored become part of the rows.
export function settle(unit) {
  for (const [row, decisions] of unit.byRow) {
    const data = rows.get(row);
    if (data) rows.set(row, decisions.reduce(applied, data));
  }
}
