// The grid of images: only the tiles in view exist. A list that is taller than a browser allows is scrolled by a map.

import { element, one, printable, write } from "./dom.js";
import { head, loadInView, model, view } from "./model.js";
import { has, selection } from "./selection.js";

const TALLEST = 8_000_000; // pixels; browsers end at 17 to 33 million
const EXACT = 1_000_000; // pixels at both ends where a pixel scrolled is a pixel moved
const GAP = 8;
const WORDS = 42; // pixels under an image
const SIZES = [96, 128, 192, 256, 384, 512]; // pixels of thumbnails, so that they are kept by the browser

const grid = one("#grid"), space = one("#space");
const tiles = new Map(); // position -> tile
const spare = [];
const band = space.appendChild(element("div", "band"));
band.hidden = true;
const layout = { columns: 1, side: 120, row: 170, total: 0, height: 0, offset: 0, wanted: 132 };
let before = 0; // scrollTop of the last event
let settled = 0, loading = 0; // timers
let fast = false; // thumbs wait until a long jump ends
let failed = () => {};

export const onFailure = (act) => { failed = act; };
export const columns = () => layout.columns;
export const rowsInView = () => Math.max(1, Math.floor(grid.clientHeight / layout.row));

// ---- scrolling ---------------------------------------------------------------------------------------------------

const reach = () => [Math.max(0, layout.total - grid.clientHeight), Math.max(0, layout.height - grid.clientHeight)];
const top = () => Math.max(0, Math.min(reach()[0], grid.scrollTop + layout.offset));

// Position of the scroll bar -> pixels from the top of the list, and back: exact at both ends, stretched between.
function mapped(at, inverse) {
  const [far, near] = reach();
  if (far <= near) return at;
  const [from, to] = inverse ? [far, near] : [near, far];
  if (at < EXACT) return at;
  if (at > from - EXACT) return to - (from - at);
  return EXACT + ((at - EXACT) * (to - 2 * EXACT)) / (from - 2 * EXACT);
}

function goTo(pixels) {
  const target = Math.max(0, Math.min(reach()[0], pixels));
  grid.scrollTop = mapped(target, true);
  before = grid.scrollTop;
  layout.offset = target - before;
}

// Takes over where the scroll bar is; a long way is a jump by the map, a short one moves by as many pixels.
function follow() {
  const moved = Math.abs(grid.scrollTop - before);
  before = grid.scrollTop;
  if (moved > 2 * grid.clientHeight) layout.offset = mapped(before, false) - before;
  return moved;
}

function onScroll() {
  fast = follow() > grid.clientHeight;
  draw();
  clearTimeout(settled);
  settled = setTimeout(() => {
    fast = false;
    follow(); // the bar may have moved since, and its event still be on the way
    if (layout.total > layout.height) goTo(top());
    draw();
  }, 120);
}

export function reveal(at) {
  const y = Math.floor(at / layout.columns) * layout.row, from = top();
  if (y < from) goTo(y);
  else if (y + layout.row > from + grid.clientHeight) goTo(y + layout.row - grid.clientHeight + GAP);
  draw();
}

export function toTop() {
  goTo(0);
  draw();
}

// ---- layout ------------------------------------------------------------------------------------------------------

export function measure() {
  follow();
  const first = Math.floor(top() / layout.row) * layout.columns, within = top() % layout.row;
  const width = space.clientWidth;
  layout.columns = Math.max(1, Math.floor((width + GAP) / (layout.wanted + GAP)));
  layout.side = Math.floor((width - GAP * (layout.columns - 1)) / layout.columns);
  layout.row = layout.side + WORDS + GAP;
  layout.total = Math.ceil(model.order.length / layout.columns) * layout.row;
  layout.height = Math.min(layout.total, TALLEST);
  space.style.height = layout.height + "px";
  goTo(Math.floor(first / layout.columns) * layout.row + (first ? within : top()));
  draw();
}

export function resize(side) {
  layout.wanted = side;
  measure();
}

export function lastInView() {
  const rows = Math.ceil((top() + grid.clientHeight) / layout.row);
  return Math.min(model.order.length, (rows + 1) * layout.columns) - 1;
}

// A point of the window in the list: pixels from its left and top.
export function point(x, y) {
  const box = space.getBoundingClientRect();
  return [x - box.left, y - box.top + layout.offset];
}

// The first and last column and row of the tiles that a rectangle between two points touches.
export function touched([x0, y0], [x1, y1]) {
  const cell = (at, size, most) => Math.max(0, Math.min(most, Math.floor(at / size)));
  const across = [x0, x1].map((x) => cell(x, layout.side + GAP, layout.columns - 1)).sort((a, b) => a - b);
  const down = [y0, y1].map((y) => cell(y, layout.row, Infinity)).sort((a, b) => a - b);
  return { across, down };
}

// Draws the rectangle of a drag; without points it goes.
export function drawBand(from, to) {
  band.hidden = !from;
  if (!from) return;
  const [left, upper] = [Math.min(from[0], to[0]), Math.min(from[1], to[1]) - layout.offset];
  Object.assign(band.style, { left: left + "px", top: upper + "px" });
  Object.assign(band.style, { width: Math.abs(to[0] - from[0]) + "px", height: Math.abs(to[1] - from[1]) + "px" });
}

// ---- tiles -------------------------------------------------------------------------------------------------------

export function draw() {
  const first = Math.max(0, Math.floor(top() / layout.row) - 1) * layout.columns;
  const last = Math.min(model.order.length, (Math.ceil((top() + grid.clientHeight) / layout.row) + 1) * layout.columns);
  for (const [at, tile] of tiles) {
    if (at < first || at >= last || tile.row !== model.order[at]) retire(at, tile);
  }
  for (let at = first; at < last; at++) {
    const tile = tiles.get(at) ?? bind(at);
    const x = (at % layout.columns) * (layout.side + GAP), y = Math.floor(at / layout.columns) * layout.row - layout.offset;
    tile.node.style.transform = `translate(${x}px, ${y}px)`;
    tile.node.style.width = tile.face.style.height = layout.side + "px";
    if (!fast) dress(tile);
    paint(tile);
  }
  grid.dataset.first = first;
  read(first, last);
}

export function repaint() {
  for (const tile of tiles.values()) paint(tile);
  const current = tiles.get(selection.cursor);
  if (current) grid.setAttribute("aria-activedescendant", current.node.id);
  else grid.removeAttribute("aria-activedescendant");
}

function read(first, last) {
  clearTimeout(loading);
  loading = setTimeout(async () => {
    const list = [...model.order.subarray(first, last)];
    try {
      await loadInView(list);
      repaint();
    } catch (error) {
      failed(error);
    }
  }, fast ? 100 : 0);
}

// Reads again the rows in view that were changed elsewhere.
export function refresh() {
  const at = [...tiles.keys()];
  if (at.length) read(Math.min(...at), Math.max(...at) + 1);
}

function create() {
  const node = element("div", "tile", "", { role: "option" });
  const face = element("div", "face"), image = element("img", "", "", { alt: "", draggable: "false", decoding: "async" });
  const mark = element("span", "mark", "", { "aria-hidden": "true" });
  const words = element("div", "words"), label = element("span", "label"), then = element("span", "then");
  const what = element("span"), chance = element("i");
  const was = element("s"), now = element("b");
  image.addEventListener("error", () => node.classList.add("gone"));
  image.addEventListener("load", () => node.classList.remove("gone"));
  label.append(was, now);
  then.append(what, chance);
  words.append(label, then);
  face.append(image, mark);
  node.append(face, words);
  return { node, face, image, mark, was, now, what, chance, row: -1 };
}

function bind(at) {
  const tile = spare.pop() ?? create();
  tile.row = model.order[at];
  tile.node.id = `tile-${tile.row}`;
  tile.node.setAttribute("aria-posinset", at + 1);
  tile.node.setAttribute("aria-setsize", model.order.length);
  tiles.set(at, tile);
  space.append(tile.node);
  return tile;
}

function retire(at, tile) {
  tiles.delete(at);
  tile.image.removeAttribute("src"); // ends a request that is on its way
  tile.node.classList.remove("gone");
  tile.node.remove();
  spare.push(tile);
}

function dress(tile) {
  const pixels = layout.side * Math.min(2, devicePixelRatio);
  const size = SIZES.find((each) => each >= pixels) ?? SIZES.at(-1);
  const address = `thumb/${tile.row}?size=${size}`;
  if (tile.image.getAttribute("src") !== address) tile.image.setAttribute("src", address);
}

// ---- words -------------------------------------------------------------------------------------------------------

export function labelText(label, { kind }) {
  if (kind === "multiclass") return label ?? "unknown";
  const values = Object.entries(label ?? {});
  const present = values.filter(([, value]) => value === 1).map(([tag]) => tag);
  if (present.length) return present.join(", ");
  return values.some(([, value]) => value === 0) ? "none" : "unknown";
}

// What is suggested and its probability, in words; null where it is what the label says.
export function suggestionText(data, { name, kind }) {
  const suggestion = data.suggestion?.[name];
  if (!suggestion) return null;
  const { class: value, probability } = suggestion, label = data.labels[name], chance = probability.toFixed(2);
  if (kind === "multiclass") return value === label ? null : [`→ ${value}`, chance];
  const present = probability >= 0.5;
  return (label?.[value] ?? null) === Number(present) ? null : [`${present ? "+" : "−"} ${value}`, chance];
}

// What is suggested under another head that is more likely wrong: why an image is in a queue of all heads.
function suggestedElsewhere(data, here) {
  const others = model.state.heads.filter((each) => each !== here && !data.decided.includes(each.name) && suggestionText(data, each));
  const [first] = others.sort((a, b) => (data.p_wrong?.[b.name] ?? 0) - (data.p_wrong?.[a.name] ?? 0));
  return first && !model.group ? [`${first.name}: ${suggestionText(data, first)[0]}`, ""] : null;
}

function paint(tile) {
  const { node, row } = tile, data = view(row), each = head();
  const selected = has(row), current = model.order[selection.cursor] === row;
  node.setAttribute("aria-selected", selected);
  node.classList.toggle("cursor", current);
  node.classList.toggle("empty", !data);
  if (!data) return;
  const decided = data.decided.includes(each.name), label = labelText(data.labels[each.name], each);
  const given = data.given ? labelText(data.given[each.name], each) : label;
  const own = decided ? null : suggestionText(data, each), suggestion = own ?? suggestedElsewhere(data, each);
  node.classList.toggle("elsewhere", Boolean(suggestion && !own));
  const state = data.problem ? "kept" : data.waiting ? "sent" : data.dropped ? "dropped" : decided ? "decided" : "";
  node.dataset.state = state;
  write(tile.mark, { kept: "!", sent: "…", dropped: "✕", decided: "✓" }[state] ?? "");
  const changed = decided && given !== label && data.given[each.name] !== null;
  write(tile.was, changed && each.kind === "multiclass" ? given : ""); // tags are too many for both
  write(tile.now, data.dropped ? "dropped" : label);
  write(tile.what, data.problem ? "not stored yet" : suggestion?.[0] ?? "");
  write(tile.chance, suggestion?.[1] ?? "");
  node.title = [data.id, data.note].filter(Boolean).map(printable).join("\n");
  const words = [data.id, `label ${label}`, suggestion ? `suggested ${suggestion.join(" ").trim()}` : "", decided ? "decided" : "", data.problem ? "not stored" : ""];
  node.setAttribute("aria-label", words.filter(Boolean).map(printable).join(", "));
}


grid.addEventListener("scroll", onScroll, { passive: true });
new ResizeObserver(() => { if (model.state) measure(); }).observe(grid);
