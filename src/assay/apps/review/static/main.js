// The page of `assay review`: starts its parts and says what each key does.

import * as actions from "./actions.js";
import { listen } from "./api.js";
import { mine, retry, start as startDecisions } from "./decisions.js";
import * as dock from "./dock.js";
import { all, count, images, one, say, write } from "./dom.js";
import * as grid from "./grid.js";
import * as map from "./map.js";
import { head, model, orderBelow, outdate, readQueue, readState, setOrder } from "./model.js";
import { start as startPointer, touch } from "./pointer.js";
import { clear, everything, lastSelected, move, selection } from "./selection.js";
import * as side from "./side.js";
import * as viewer from "./viewer.js";

const LOCAL = "local"; // a grid that this window made: the images inside the lasso, or near to one
const QUIET = 700; // milliseconds without a key before the order below changes
let lastKey = 0, reorderTimer = 0, stateTimer = 0;
let seen = -1; // the newest version that was read
let chosenQueue = true; // by the person; else the best one comes into the grid once the model has learnt it

// ---- queues ------------------------------------------------------------------------------------------------------

async function pick(id, group = "", { cursor = true, asked = () => true } = {}) {
  closeSide();
  map.show(false);
  try {
    const { values, version } = await readQueue(id, group);
    if (!asked()) return;
    Object.assign(model, { queue: id, group });
    location.hash = new URLSearchParams(group ? { queue: id, group } : { queue: id });
    const queue = model.state.queues.find((each) => each.id === id), named = queue?.groups?.find((each) => each.id === group)?.head;
    if (named !== null && named !== undefined) setHead(named); // of a group of one head: keys are for that head
    show(values, version, cursor);
    await refreshState();
  } catch (error) {
    fail(error);
  }
}

function show(values, version, cursor = true) {
  setOrder(values, version);
  clear();
  Object.assign(selection, { cursor: 0, anchor: 0 });
  if (cursor && values.length) move(0);
  grid.measure();
  grid.toTop();
  title();
  chosenChanged();
  one("#grid").focus({ preventScroll: true }); // keys are for images, not for the button of the queue
}

function showLocal(rows, words) {
  Object.assign(model, { queue: LOCAL, group: "", title: words });
  map.show(false);
  show(rows, model.version);
  side.draw();
}

function title() {
  const queue = model.state.queues.find((each) => each.id === model.queue);
  const group = queue?.groups?.find((each) => each.id === model.group);
  write(one("#title"), model.queue === LOCAL ? model.title : group?.title ?? queue?.title ?? "");
  write(one("#size"), images(model.order.length));
  one("#empty").hidden = model.order.length > 0;
}

// The order that was learnt meanwhile, below what is in view and what is selected.
function reorder() {
  clearTimeout(reorderTimer);
  reorderTimer = setTimeout(async () => {
    if (model.queue === LOCAL || model.units.length) return;
    if (performance.now() - lastKey < QUIET) return reorder();
    try {
      const { queue, group } = model, { values, version } = await readQueue(queue, group);
      if (queue !== model.queue || group !== model.group) return;
      if (performance.now() - lastKey < QUIET) return reorder();
      one("#grid").dataset.version = version;
      setOrder(orderBelow(values, 1 + Math.max(grid.lastInView(), lastSelected())), version);
      grid.measure();
      title();
    } catch (error) {
      fail(error);
    }
  }, QUIET);
}

function nextQueue(step) {
  const next = side.neighbour(step);
  if (next) pick(next[0], next[1]);
  else say(step > 0 ? "That was the last queue." : "That was the first queue.");
}

// ---- what changes ------------------------------------------------------------------------------------------------

async function refreshState() {
  await readState();
  const best = model.state.queues.find((queue) => queue.count);
  const untouched = () => !chosenQueue && !lastKey; // asked again once the queue is read: nothing changes under a hand
  if (untouched() && best && best.id !== model.queue) return pick(best.id, "", { asked: untouched });
  seen = Math.max(seen, model.state.version);
  side.draw();
  title();
  dock.paint();
}

function chosenChanged() {
  grid.repaint();
  dock.paint();
  viewer.follow();
  if (map.isOpen()) map.draw();
}

function decisionsChanged() {
  const problem = model.units.find((unit) => unit.problem)?.problem;
  one("#problem").hidden = !problem;
  if (problem) {
    const kept = model.units.reduce((sum, unit) => sum + unit.decisions.length, 0);
    const words = kept === 1 ? "1 decision is not stored. It is kept in this window" : `${count(kept)} decisions are not stored. They are kept in this window`;
    write(one("#problem span"), `${problem} ${words}, and sent again by itself.`);
  }
  chosenChanged();
  if (!model.units.length) soon();
}

// The numbers at the left follow a moment later, once for many decisions.
function soon() {
  clearTimeout(stateTimer);
  stateTimer = setTimeout(() => refreshState().catch(fail), 250);
}

function hear({ version, progress }) {
  one("#offline").hidden = true;
  if (progress) side.drawProgress(progress);
  if (version <= seen) return;
  seen = version;
  if (!mine.delete(version)) {
    outdate(); // another window, or the model that learns
    grid.refresh();
  }
  soon();
  reorder();
}

const fail = (error) => {
  if (error.status === 0) one("#offline").hidden = false;
  else say(error.message, "bad");
};

function setHead(index) {
  if (index === model.head) return;
  model.head = index;
  dock.drawHeads();
  chosenChanged();
}

// ---- keys --------------------------------------------------------------------------------------------------------

const MOVES = {
  ArrowLeft: () => -1,
  ArrowRight: () => 1,
  ArrowUp: () => -grid.columns(),
  ArrowDown: () => grid.columns(),
  PageUp: () => -grid.columns() * grid.rowsInView(),
  PageDown: () => grid.columns() * grid.rowsInView(),
  Home: () => -model.order.length,
  End: () => model.order.length,
};

const COMMANDS = {
  Enter: actions.accept,
  " ": actions.keep,
  u: actions.unset,
  d: actions.drop,
  z: actions.takeBack,
  y: actions.again,
  i: () => (viewer.isOpen() ? one("#viewer").close() : viewer.open(selection.cursor)),
  "/": dock.find,
  "?": () => one("#help").showModal(),
  "]": () => nextQueue(1),
  "[": () => nextQueue(-1),
  "+": () => size(16),
  "=": () => size(16),
  "-": () => size(-16),
  Escape: escape,
};

function escape() {
  if (map.isOpen()) map.show(false);
  else if (one("body").classList.contains("side-open")) closeSide();
  else if (selection.size) {
    clear();
    chosenChanged();
  } else one("#queues [aria-current]")?.focus(); // Tab, which changes the head in the grid, moves on from there
}

function onKey(event) {
  lastKey = performance.now();
  if (event.target.closest("input, textarea, select") || one("#search").open || one("#help").open) return;
  if (map.isOpen() && event.key !== "Escape" && event.key !== "?") return;
  const control = event.ctrlKey || event.metaKey, key = keyOf(event);
  if (event.altKey || (control && !["a", "z", "y"].includes(key))) return;
  const pressed = event.target.closest("button, a, summary");
  if (pressed && (key === "Enter" || key === " ")) return; // the button's
  if (run(key, control, event)) event.preventDefault();
}

// The letter or name of a key; where a layout has no Latin letters or no digits without Shift, by where the key is.
function keyOf({ key, code }) {
  const letter = key.length === 1 ? key.toLowerCase() : key;
  if (COMMANDS[letter] || key.length > 1 || (head().keys ?? []).includes(letter)) return letter;
  return /^(Key|Digit)/.test(code) ? code.at(-1).toLowerCase() : letter;
}

// Whether the key did something.
function run(key, control, event) {
  const inGrid = !event.target.closest("#side");
  if (control && key === "a") {
    everything();
    chosenChanged();
  } else if (control && key === "z" && event.shiftKey) actions.again();
  else if (key === "Tab" && inGrid && model.state.heads.length > 1) {
    setHead((model.head + (event.shiftKey ? -1 : 1) + model.state.heads.length) % model.state.heads.length);
  } else if (MOVES[key] && inGrid) {
    const at = selection.cursor + MOVES[key]();
    move(at, { extend: event.shiftKey && !viewer.isOpen() });
    grid.reveal(selection.cursor);
    chosenChanged();
  } else if (key === "Escape" && viewer.isOpen()) return false; // the dialog closes itself
  else if (COMMANDS[key]) Promise.resolve(COMMANDS[key]()).catch(fail);
  else {
    const at = (head().keys ?? []).indexOf(key);
    if (at < 0) return false;
    actions.give(head().classes[at]).catch(fail);
  }
  return true;
}

// ---- small things ------------------------------------------------------------------------------------------------

function size(by) {
  const slider = one("#tile-size");
  slider.value = Number(slider.value) + by;
  grid.resize(Number(slider.value));
}

function closeSide() {
  document.body.classList.remove("side-open");
  one("#side-button").setAttribute("aria-expanded", "false");
}

function wire() {
  one("#tile-size").addEventListener("input", () => size(0));
  one("#reload").addEventListener("click", () => pick(model.queue === LOCAL ? model.state.queues[0].id : model.queue, model.group));
  one("#map-button").addEventListener("click", () => map.show(!map.isOpen()));
  one("#help-button").addEventListener("click", () => one("#help").showModal());
  one("#side-button").addEventListener("click", () => {
    const open = document.body.classList.toggle("side-open");
    one("#side-button").setAttribute("aria-expanded", open);
  });
  one("#shade").addEventListener("click", closeSide);
  one("#next-queue").addEventListener("click", () => nextQueue(1));
  one("#problem button").addEventListener("click", retry);
  for (const dialog of all("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  for (const node of all("dialog .close")) node.addEventListener("click", () => node.closest("dialog").close());
  document.addEventListener("keydown", onKey);
  document.addEventListener("pointerdown", () => { chosenQueue = true; });
  one("#dock").addEventListener("click", () => { if (!viewer.isOpen()) one("#grid").focus({ preventScroll: true }); });
}

async function startAll() {
  if (matchMedia("(max-width: 720px)").matches) one("#tile-size").value = 104;
  await readState();
  document.body.classList.add("ready");
  wire();
  side.start(pick);
  viewer.start(chosenChanged, showLocal);
  dock.start({
    open: () => viewer.open(selection.cursor),
    range: () => { touch.range = true; dock.markRange(true); },
    onHead: setHead,
  });
  startPointer({ open: viewer.open, changed: () => { dock.markRange(touch.range); chosenChanged(); } });
  map.start((rows) => showLocal(rows, "Inside the lasso"), setHead);
  grid.onFailure(fail);
  grid.resize(Number(one("#tile-size").value));
  side.draw();
  startDecisions(decisionsChanged, (message) => say(message, "bad")); // before the first image that a key could decide
  const hash = new URLSearchParams(location.hash.slice(1));
  const first = model.state.queues.find((queue) => queue.id === hash.get("queue")) ?? model.state.queues.find((queue) => queue.count) ?? model.state.queues[0];
  await pick(first.id, first.id === hash.get("queue") ? hash.get("group") ?? "" : "");
  chosenQueue = Boolean(hash.get("queue"));
  if (model.state.trainer) side.watchTraining().catch(fail);
  listen(hear, () => { one("#offline").hidden = false; });
}

startAll().catch((error) => {
  one("#offline").hidden = false;
  write(one("#offline span"), error.message);
  throw error;
});
