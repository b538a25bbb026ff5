// Decisions on their way to the ledger: one request is one unit of undo, and they are sent in order.

import { post, Refusal } from "./api.js";
import { model, outdate, settle } from "./model.js";

const STORE = "assay.decisions"; // those not stored survive a reload of the window
const RETRY = [1000, 2000, 5000, 10_000]; // milliseconds
const REFUSED = new Set([400, 413, 422]); // the same request would be refused again
export const mine = new Set(); // versions that this window made

let sending = null; // the promise of the requests on their way
let onItsWay = null; // the unit of the request
let attempt = 0, timer = 0;
let changed = () => {};
let refused = () => {};

export function start(onChange, onRefusal) {
  changed = onChange;
  refused = onRefusal;
  for (const decisions of JSON.parse(sessionStorage.getItem(STORE) ?? "[]")) model.units.push(unitOf(decisions));
  addEventListener("beforeunload", (event) => { if (model.units.length) event.preventDefault(); });
  addEventListener("online", retry);
  retry();
}

function unitOf(decisions) {
  const byRow = new Map();
  for (const decision of decisions) byRow.set(decision.row, [...(byRow.get(decision.row) ?? []), decision]);
  return { decisions, byRow, problem: "" };
}

const keep = () => sessionStorage.setItem(STORE, JSON.stringify(model.units.slice(0, 50).map((unit) => unit.decisions)));

export function decide(decisions) {
  const waiting = model.units[0]?.problem ?? "";
  model.units.push({ ...unitOf(decisions), problem: waiting });
  changed();
  if (waiting) keep();
  else send();
}

export function retry() {
  clearTimeout(timer);
  send();
}

function send() {
  sending ??= sendAll().finally(() => { sending = null; });
  return sending;
}

async function sendAll() {
  while (model.units.length) {
    const unit = model.units[0];
    try {
      onItsWay = unit;
      const { version } = await post("api/decide", { decisions: unit.decisions });
      mine.add(version);
      settle(unit);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!REFUSED.has(error.status)) return hold(error.message);
      outdate(unit.byRow.keys());
      refused(`Not stored: ${error.message}`);
    } finally {
      onItsWay = null;
    }
    attempt = 0;
    model.units.shift();
    if (model.units.some((each) => each.problem)) model.units.forEach((each) => { each.problem = ""; });
    if (sessionStorage.getItem(STORE)) keep();
    changed();
  }
}

function hold(problem) {
  for (const unit of model.units) unit.problem = problem;
  keep();
  timer = setTimeout(retry, RETRY[Math.min(attempt++, RETRY.length - 1)]);
  changed();
}

// Takes back the newest decision: one that waits here, or else the newest that the server has. Returns its rows.
export async function undo() {
  if (model.units.length && model.units.at(-1) !== onItsWay) {
    const unit = model.units.pop();
    keep();
    changed();
    return [...unit.byRow.keys()];
  }
  return turn("api/undo");
}

export const redo = () => turn("api/redo");

async function turn(address) {
  if (sending) await sending;
  if (model.units.length) throw new Refusal("Decisions that are not stored come first.", 409);
  const { version, rows } = await post(address, {});
  mine.add(version);
  outdate(rows);
  changed();
  return rows;
}
