// The map of features: every image a point, in the colour of its class. What is inside the lasso becomes the grid.

import { numbers } from "./api.js";
import { all, button, count, element, images, one, say, write } from "./dom.js";
import { head, model } from "./model.js";
import { has } from "./selection.js";

const box = one("#map"), canvas = one("#map canvas"), peek = one("#map .peek");
const context = canvas.getContext("2d");
const LISTED = 60; // classes, the most frequent
const at = { x: 0, y: 0, scale: 1 }; // the point of the map in the middle, pixels a unit
let points = null; // Float32Array: x, y of each row
let classes = new Int32Array(0); // row -> the class under the head, -1 for none
let picked = -1; // the class that alone is coloured
let tool = "lasso";
let drag = null; // {line, x, y}
const fingers = new Map(); // pointerId -> [x, y]
let pinch = 0; // distance of two fingers at the last event
let take = () => {}, changeHead = () => {};
let frame = 0;

export const isOpen = () => !box.hidden;

export function start(onTake, onHead) {
  take = onTake;
  changeHead = onHead;
  const select = one("#map-head");
  select.append(...model.state.heads.map((each, index) => element("option", "", each.name, { value: index })));
  select.addEventListener("change", () => { changeHead(Number(select.value)); colour(); });
  one("label", box).hidden = model.state.heads.length < 2;
  for (const node of box.querySelectorAll("[data-tool]")) node.addEventListener("click", () => choose(node.dataset.tool));
  for (const node of box.querySelectorAll("[data-zoom]")) node.addEventListener("click", () => zoom(Number(node.dataset.zoom)));
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * 0.0016), event); }, { passive: false });
  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", moved);
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, up);
  canvas.addEventListener("pointerleave", () => { peek.hidden = true; });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", keys);
  new ResizeObserver(() => { if (isOpen()) draw(); }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (isOpen()) draw(); });
  choose(tool);
}

export async function show(on = true) {
  box.hidden = !on;
  one("#grid").hidden = on;
  one("#map-button").setAttribute("aria-pressed", on);
  peek.hidden = true;
  if (!on) return;
  one("#map .wait").hidden = points !== null;
  try {
    await colour();
    points = (await numbers("api/map", Float32Array)).values;
    zoom(0);
    one("#map .wait").hidden = true;
  } catch (error) {
    write(one("#map .wait"), error.message);
  }
}

// Reads the class of each image, and lists the classes with their colours; a click leaves the others grey.
async function colour() {
  one("#map-head").value = model.head;
  classes = (await numbers(`api/classes?head=${model.head}`, Int32Array)).values;
  picked = -1;
  const sizes = new Map();
  for (const value of classes) sizes.set(value, (sizes.get(value) ?? 0) + 1);
  const listed = [...sizes.keys()].filter((value) => value >= 0).sort((a, b) => sizes.get(b) - sizes.get(a)).slice(0, LISTED).sort((a, b) => a - b);
  one("#map .classes").replaceChildren(...listed.map((value) => {
    const node = button("class", "", () => pickClass(value), { "aria-pressed": "false", "data-value": value }), key = element("i", "key");
    key.style.background = head().colours[value];
    node.append(key, element("span", "", head().classes[value]), element("small", "", count(sizes.get(value))));
    return node;
  }));
  draw();
}

function pickClass(value) {
  picked = picked === value ? -1 : value;
  for (const node of all("#map .classes button")) node.setAttribute("aria-pressed", Number(node.dataset.value) === picked);
  draw();
}

function choose(name) {
  tool = name;
  for (const node of box.querySelectorAll("[data-tool]")) node.setAttribute("aria-pressed", node.dataset.tool === name);
  canvas.dataset.tool = name;
}

// ---- where a point is drawn --------------------------------------------------------------------------------------

// A factor about a point of the window, or the middle; 0 shows all.
function zoom(factor, event = null) {
  if (!points) return;
  if (!factor) {
    const [x0, x1, y0, y1] = bounds();
    Object.assign(at, { x: (x0 + x1) / 2, y: (y0 + y1) / 2 });
    at.scale = 0.94 * Math.min(canvas.clientWidth / (x1 - x0 || 1), canvas.clientHeight / (y1 - y0 || 1));
  } else {
    const [x, y] = event ? onMap(event.offsetX, event.offsetY) : [at.x, at.y];
    at.scale *= factor;
    Object.assign(at, { x: x + (at.x - x) / factor, y: y + (at.y - y) / factor });
  }
  draw();
}

function bounds() {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let index = 0; index < points.length; index += 2) {
    const x = points[index], y = points[index + 1];
    if (x < x0) x0 = x;
    if (x > x1) x1 = x;
    if (y < y0) y0 = y;
    if (y > y1) y1 = y;
  }
  return [x0, x1, y0, y1];
}

const onMap = (x, y) => [at.x + (x - canvas.clientWidth / 2) / at.scale, at.y + (y - canvas.clientHeight / 2) / at.scale];

// ---- drawing -----------------------------------------------------------------------------------------------------

export function draw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(paint);
}

// 32-bit pixels: of what is selected, of no class, and of each class in the queue and outside.
function inks() {
  const style = getComputedStyle(document.documentElement), variable = (name) => style.getPropertyValue(name).trim();
  const parts = (colour) => {
    context.fillStyle = colour; // read back as #rrggbb
    return context.fillStyle.slice(1).match(/../g).map((hex) => parseInt(hex, 16));
  };
  const paper = parts(variable("--paper"));
  const ink = (colour, faded = 0) => {
    const [r, g, b] = parts(colour).map((part, at) => Math.round(part + faded * (paper[at] - part)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  };
  const faint = variable("--faint"), of = (value) => (picked < 0 || picked === value ? head().colours[value] : faint);
  const table = (faded) => Uint32Array.from([faint, ...head().colours.map((_, value) => of(value))], (each) => ink(each, faded));
  return { selected: ink(variable("--ink")), inside: table(0), outside: table(0.68) };
}

// Points are written into the pixels: 1,000,000 take some 20 ms.
function paint() {
  const ratio = devicePixelRatio, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (!points || !width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer), ink = inks();
  const total = points.length / 2, scale = at.scale * ratio;
  const radius = Math.max(1, Math.min(5, Math.round(ratio * (total > 50_000 ? 0.6 : total > 5_000 ? 1.4 : 2.6)))) - (total > 50_000 ? 1 : 0);
  const stamp = (row, colour, r) => {
    const x = Math.round((points[2 * row] - at.x) * scale + width / 2), y = Math.round((points[2 * row + 1] - at.y) * scale + height / 2);
    if (x < r || y < r || x >= width - r || y >= height - r) return;
    for (let dy = -r; dy <= r; dy++) {
      for (let dx = -r; dx <= r; dx++) if (dx * dx + dy * dy <= r * r + 1) pixels[(y + dy) * width + x + dx] = colour;
    }
  };
  for (let row = 0; row < total; row++) if (model.position[row] < 0) stamp(row, ink.outside[classes[row] + 1], radius);
  if (model.order.length < total) for (const row of model.order) stamp(row, ink.inside[classes[row] + 1], radius);
  else for (let row = 0; row < total; row++) stamp(row, ink.inside[classes[row] + 1], radius);
  if (picked >= 0) for (let row = 0; row < total; row++) if (classes[row] === picked) stamp(row, ink.inside[picked + 1], radius);
  for (let row = 0; row < total; row++) if (has(row)) stamp(row, ink.selected, radius + 1);
  context.putImageData(image, 0, 0);
  if (drag?.line) outline(drag.line, ratio);
  write(one("#map .status"), drag?.line ? "Let go to see these images in the grid." : `${images(total)}, ${count(model.order.length)} of them in the queue`);
}

function outline(line, ratio) {
  context.beginPath();
  for (const [x, y] of line) context.lineTo(x * ratio, y * ratio);
  context.closePath();
  const style = getComputedStyle(document.documentElement);
  context.strokeStyle = style.getPropertyValue("--ink");
  context.lineWidth = 1.5 * ratio;
  context.stroke();
  context.globalAlpha = 0.08;
  context.fillStyle = style.getPropertyValue("--ink");
  context.fill();
  context.globalAlpha = 1;
}

// ---- pointers ----------------------------------------------------------------------------------------------------

function down(event) {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  peek.hidden = true;
  if (fingers.size === 2) {
    drag = null;
    pinch = spread();
    return;
  }
  const pan = tool === "pan" || event.button !== 0 || event.shiftKey;
  drag = { x: event.offsetX, y: event.offsetY, line: pan ? null : [[event.offsetX, event.offsetY]] };
}

const spread = () => { const [[x0, y0], [x1, y1]] = [...fingers.values()]; return Math.hypot(x1 - x0, y1 - y0); };

function moved(event) {
  const [x, y] = [event.offsetX, event.offsetY];
  if (!fingers.has(event.pointerId)) return look(x, y);
  const [oldX, oldY] = fingers.get(event.pointerId);
  fingers.set(event.pointerId, [x, y]);
  if (fingers.size === 2) {
    const now = spread(), [[x0, y0], [x1, y1]] = [...fingers.values()];
    at.x -= (x - oldX) / 2 / at.scale;
    at.y -= (y - oldY) / 2 / at.scale;
    zoom(now / (pinch || now), { offsetX: (x0 + x1) / 2, offsetY: (y0 + y1) / 2 });
    pinch = now;
  } else if (drag?.line) drag.line.push([x, y]);
  else if (drag) {
    at.x -= (x - drag.x) / at.scale;
    at.y -= (y - drag.y) / at.scale;
    Object.assign(drag, { x, y });
  }
  draw();
}

function up(event) {
  fingers.delete(event.pointerId);
  const line = drag?.line;
  drag = null;
  draw();
  if (!line || event.type === "pointercancel" || line.length < 4) return line ? look(event.offsetX, event.offsetY) : undefined;
  const rows = inside(line.map(([x, y]) => onMap(x, y)));
  if (!rows.length) return say("No image is inside the line.");
  take(rows);
}

// The rows inside a polygon: those of the queue first, in its order.
function inside(line) {
  const xs = line.map(([x]) => x), ys = line.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const within = (row) => {
    const x = points[2 * row], y = points[2 * row + 1];
    if (x < x0 || x > x1 || y < y0 || y > y1) return false;
    let odd = false;
    for (let here = 0, last = line.length - 1; here < line.length; last = here++) {
      if ((ys[here] > y) !== (ys[last] > y) && x < ((xs[last] - xs[here]) * (y - ys[here])) / (ys[last] - ys[here]) + xs[here]) odd = !odd;
    }
    return odd;
  };
  const rest = [];
  for (let row = 0; row < points.length / 2; row++) if (model.position[row] < 0 && within(row)) rest.push(row);
  return Int32Array.from([...model.order.filter(within), ...rest]);
}

// The image nearest to a point of the window, within 12 pixels.
function look(x, y) {
  if (!points) return;
  const [mx, my] = onMap(x, y), far = (12 / at.scale) ** 2;
  let nearest = -1, least = far;
  for (let row = 0; row < points.length / 2; row++) {
    const distance = (points[2 * row] - mx) ** 2 + (points[2 * row + 1] - my) ** 2;
    if (distance < least) [nearest, least] = [row, distance];
  }
  peek.hidden = nearest < 0;
  if (nearest < 0) return;
  const address = `thumb/${nearest}?size=128`, image = one("img", peek);
  if (image.getAttribute("src") !== address) image.src = address;
  const left = Math.min(x + 16, canvas.clientWidth - 144), upper = Math.min(Math.max(4, y - 64), canvas.clientHeight - 144);
  Object.assign(peek.style, { left: canvas.offsetLeft + left + "px", top: canvas.offsetTop + upper + "px" });
}

function keys(event) {
  const pan = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (pan) {
    at.x += (60 * pan[0]) / at.scale;
    at.y += (60 * pan[1]) / at.scale;
    draw();
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") zoom(0);
  else return;
  event.preventDefault();
  event.stopPropagation();
}
