// Mouse, pen and finger on the grid: click, drag, tap.

import { one } from "./dom.js";
import { columns, draw, drawBand, point, repaint, touched } from "./grid.js";
import { model } from "./model.js";
import { clear, move, positionsSelected, put, selection, toggle } from "./selection.js";

const grid = one("#grid");
const EDGE = 36; // pixels from the rim where a drag scrolls
let drag = null;
let last = null; // the newest pointer event of a drag
export const touch = { range: false }; // the next tap ends a range

export function start({ open, changed }) {
  const at = (event) => {
    const tile = event.target.closest?.(".tile");
    return tile ? model.position[Number(tile.id.slice(5))] : -1;
  };

  grid.addEventListener("click", (event) => {
    const index = at(event);
    if (index < 0 || drag) return;
    if (event.shiftKey || touch.range) move(index, { extend: true });
    else if (event.ctrlKey || event.metaKey || event.pointerType === "touch") toggle(index);
    else move(index);
    touch.range = false;
    grid.focus({ preventScroll: true });
    changed();
  });
  grid.addEventListener("dblclick", (event) => { const index = at(event); if (index >= 0) open(index); });

  grid.addEventListener("pointerdown", (event) => {
    const bar = event.clientX > grid.getBoundingClientRect().left + grid.clientLeft + grid.clientWidth;
    if (event.pointerType === "touch" || event.button !== 0 || bar || event.shiftKey) return;
    const add = event.ctrlKey || event.metaKey;
    last = event;
    const from = point(event.clientX, event.clientY);
    drag = { from, x: event.clientX, y: event.clientY, base: add ? positionsSelected() : [], active: false };
  });
  addEventListener("pointermove", (event) => {
    if (!drag) return;
    last = event;
    if (!drag.active && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 6) return;
    if (!drag.active) {
      drag.active = true;
      grid.setPointerCapture(event.pointerId);
      requestAnimationFrame(roll);
    }
    stretch(changed);
  });
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);

  function roll() {
    if (!drag?.active) return;
    const box = grid.getBoundingClientRect();
    const speed = Math.min(0, last.clientY - box.top - EDGE) + Math.max(0, last.clientY - box.bottom + EDGE);
    if (speed) {
      grid.scrollTop += speed / 2;
      draw();
      stretch(changed);
    }
    requestAnimationFrame(roll);
  }
}

function stretch(changed) {
  const to = point(last.clientX, last.clientY), { across, down } = touched(drag.from, to), wide = columns();
  clear();
  for (const index of drag.base) put(index);
  for (let row = down[0]; row <= down[1]; row++) {
    for (let column = across[0]; column <= across[1]; column++) put(row * wide + column);
  }
  const cell = touched(to, to), length = model.order.length - 1;
  const cursor = Math.min(length, cell.down[0] * wide + cell.across[0]);
  const first = touched(drag.from, drag.from);
  Object.assign(selection, { cursor, anchor: Math.min(length, first.down[0] * wide + first.across[0]) });
  drawBand(drag.from, to);
  changed();
}

function end() {
  if (!drag) return;
  const active = drag.active;
  drawBand(null);
  if (!active) drag = null;
  else {
    setTimeout(() => { drag = null; }); // after the click that ends a drag, which chooses nothing
    grid.focus({ preventScroll: true });
    repaint();
  }
}
