// One image large: its probabilities, the nearest labelled images, where the model looks, and what the ledger has of it.

import { get } from "./api.js";
import { all, button, element, one, say, write } from "./dom.js";
import { labelText, reveal, suggestionText } from "./grid.js";
import { head, known, load, model, view } from "./model.js";
import { move, selection } from "./selection.js";

const dialog = one("#viewer"), dockHome = one("#dock").parentNode;
let row = -1;
let heat = false; // Grad-CAM is laid over the image
let changed = () => {}, makeGrid = () => {};

export const isOpen = () => dialog.open;

export function start(onChange, onGrid) {
  changed = onChange;
  makeGrid = onGrid;
  dialog.addEventListener("close", () => {
    row = -1;
    dockHome.append(one("#dock"));
    one("#grid").focus({ preventScroll: true });
  });
  one(".close", dialog).addEventListener("click", () => dialog.close());
  one(".heat", dialog).addEventListener("click", () => { heat = !heat; drawHeat(); });
  one(".before", dialog).addEventListener("click", () => step(-1));
  one(".after", dialog).addEventListener("click", () => step(1));
  const face = one("img.large", dialog);
  face.addEventListener("load", () => dialog.classList.remove("gone"));
  face.addEventListener("error", () => dialog.classList.add("gone"));
  one("img.over", dialog).addEventListener("error", () => {
    if (!heat) return;
    heat = false;
    drawHeat();
    say("There is no Grad-CAM of this image.", "bad");
  });
}

export function open(at) {
  if (!model.order.length) return;
  move(at);
  changed();
  if (!dialog.open) {
    one(".dockspace", dialog).append(one("#dock"));
    dialog.showModal();
  }
  follow();
}

export function step(by) {
  move(selection.cursor + by);
  reveal(selection.cursor);
  changed();
}

// Shows the image under the cursor, and again what changed about it.
export function follow() {
  if (!dialog.open) return;
  const now = model.order[selection.cursor];
  if (now !== row) {
    row = now;
    one("img.large", dialog).src = `image/${row}`;
    drawHeat();
    all(".fills", dialog).forEach((box) => box.replaceChildren());
    read(row);
  }
  drawLabel();
}

function drawLabel() {
  const data = view(row), each = head();
  write(one(".where", dialog), `${selection.cursor + 1} of ${model.order.length}`);
  if (!data) return;
  const label = labelText(data.labels[each.name], each), decided = data.decided.includes(each.name);
  write(one(".path", dialog), data.id);
  write(one(".label", dialog), data.dropped ? "dropped" : label);
  one(".label", dialog).classList.toggle("right", decided && !data.waiting);
  write(one(".then", dialog), data.problem ? "not stored yet" : decided ? "" : suggestionText(data, each)?.join(" ") ?? "");
  write(one(".note", dialog), data.note ?? "");
}

function drawHeat() {
  const toggle = one(".heat", dialog), over = one("img.over", dialog);
  toggle.hidden = !model.state.model;
  toggle.setAttribute("aria-pressed", heat);
  over.hidden = !heat;
  if (!heat) return over.removeAttribute("src");
  const suggested = view(row)?.suggestion?.[head().name]?.class;
  const parameters = new URLSearchParams({ head: head().name });
  if (suggested) parameters.set("class", suggested);
  over.src = `gradcam/${row}?${parameters}`;
}

async function read(wanted) {
  try {
    if (!known(wanted)) await load([wanted]);
    const details = await get(`api/image/${wanted}`);
    if (wanted !== row) return;
    drawLabel();
    drawProbabilities(details.probabilities ?? {});
    drawNeighbours(details.neighbours ?? []);
    drawHistory(details.history ?? []);
  } catch (error) {
    if (wanted === row) say(error.message, "bad");
  }
}

function drawProbabilities(byHead) {
  const several = model.state.heads.length > 1;
  one(".probabilities", dialog).replaceChildren(...Object.entries(byHead).flatMap(([name, list]) => {
    const title = several ? [element("h4", "", name)] : [];
    const label = view(row)?.labels[name];
    return [...title, ...entries(list).map(([value, probability]) => {
      const bar = element("div", "bar"), meter = element("i", "meter"), fill = element("i", "fill");
      fill.style.width = `${100 * probability}%`;
      meter.append(fill);
      const given = typeof label === "string" ? label === value : label?.[value] === 1;
      bar.append(element("span", given ? "given" : "", value), meter, element("span", "number", probability.toFixed(2)));
      return bar;
    })];
  }));
  one(".probabilities", dialog).parentNode.hidden = !Object.keys(byHead).length;
}

const entries = (list) => (Array.isArray(list) ? list.map((each) => Array.isArray(each) ? each : [each.class, each.probability]) : Object.entries(list));

function drawNeighbours(list) {
  one(".neighbours", dialog).replaceChildren(...list.map((each) => {
    const node = button("neighbour", "", () => visit(each.row, list), { title: `distance ${each.distance.toFixed(2)}` });
    node.append(element("img", "", "", { src: `thumb/${each.row}?size=128`, alt: "" }), element("span", "", neighbourLabel(each.label)));
    return node;
  }));
  one(".neighbours", dialog).parentNode.hidden = !list.length;
}

const neighbourLabel = (label) => typeof label === "string" ? label : label === null ? "unknown" : labelText(label, { kind: "multilabel" });

// A neighbour opens where it is in the grid; where it is not, the grid becomes this image and its neighbours.
function visit(other, list) {
  if (model.position[other] < 0) makeGrid(Int32Array.from(new Set([row, ...list.map((each) => each.row)])), `Nearest to ${view(row).id}`);
  open(model.position[other]);
  reveal(selection.cursor);
}

function drawHistory(list) {
  one(".history", dialog).replaceChildren(...list.map((entry) => {
    const item = element("li"), text = typeof entry === "string" ? entry : sentence(entry);
    item.append(element("span", "", text), element("small", "", typeof entry === "string" ? "" : [entry.step, entry.date?.slice(0, 16).replace("T", " ")].filter(Boolean).join(", ")));
    return item;
  }));
  one(".history", dialog).parentNode.hidden = !list.length;
}

function sentence({ action, head: name, tag, old, new: value, reason }) {
  const what = [model.state.heads.length > 1 ? name : "", tag].filter(Boolean).join(" ");
  const change = action === "drop" ? "dropped" : action === "unset" ? "unknown" : `${old ?? "unknown"} → ${value ?? "unknown"}`;
  return [what, action === "undo" ? "taken back" : change, reason ? `(${reason})` : ""].filter(Boolean).join(" ");
}
