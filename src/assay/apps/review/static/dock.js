// The bar of actions and classes, with the keys that do the same; the search box for many classes.

import { accept, again, chosen, drop, give, keep, labelCounts, takeBack, unset } from "./actions.js";
import { all, button, count, element, images, one, printable, write } from "./dom.js";
import { head, known, model } from "./model.js";
import { selection } from "./selection.js";

const MANY = 60; // class buttons of a head; the others are reached by the search box
const SAMPLE = 300; // images of a selection whose labels the buttons show
const dock = one("#dock"), search = one("#search");
let changeHead = () => {};

const ACTIONS = [
  ["accept", "Accept", "⏎", accept, "Accept the suggestion"],
  ["keep", "Label is right", "␣", keep, "The label is right; of tags, all of them are"],
  ["unset", "Unknown", "U", unset, "The label is not known"],
  ["drop", "Drop", "D", drop, "Not a valid image"],
  ["undo", "Undo", "Z", takeBack, "Take the last decision back"],
  ["redo", "Redo", "Y", again, "Make it again"],
];

export function start({ open, range, onHead }) {
  changeHead = onHead;
  const row = one("#actions");
  for (const [id, words, key, act, title] of ACTIONS) row.append(withKey(`act ${id}`, words, key, () => act(), title));
  row.append(withKey("act open", "Open", "I", open, "Show the image large"));
  row.append(button("act range", "Select to…", range, { title: "The next tap ends the range", "aria-pressed": "false" }));
  search.addEventListener("close", () => one("#grid").focus({ preventScroll: true }));
  one("input", search).addEventListener("input", list);
  one("form", search).addEventListener("submit", (event) => {
    event.preventDefault();
    one("[role=listbox] button", search)?.click();
  });
  drawHeads();
}

function withKey(className, words, key, act, title, attributes = {}) {
  const node = button(className, "", act, { title: printable(title), ...attributes });
  if (key) node.append(element("kbd", "", key));
  node.append(element("span", "", words));
  return node;
}

// A row of classes for each head; keys act on the row that is lit.
export function drawHeads() {
  const { heads } = model.state;
  one("#heads").replaceChildren(...heads.map((each, index) => {
    const row = element("div", "head", "", { role: "group", "aria-label": printable(each.name) });
    row.classList.toggle("here", index === model.head);
    if (heads.length > 1) row.append(button("name", each.name, () => changeHead(index), { "aria-pressed": index === model.head }));
    const box = row.appendChild(element("div", "classes"));
    each.classes.slice(0, MANY).forEach((value, at) => box.append(classButton(each, value, at, index)));
    if (each.classes.length > 12) {
      const rest = each.classes.length > MANY ? `${count(each.classes.length)} classes` : "Search";
      box.prepend(withKey("class more", rest, "/", () => { changeHead(index); find(); }, "Find a class by its name"));
    }
    return row;
  }));
  paint();
}

function classButton(each, value, at, index) {
  const key = index === model.head ? each.keys?.[at] : null;
  const act = () => { changeHead(index); give(value); };
  const node = withKey("class", value, key ? key.toUpperCase() : "", act, value, { "aria-pressed": "false" });
  node.dataset.value = value;
  return node;
}

export function paint() {
  const drawn = chosen(SAMPLE).filter(known);
  write(one("#chosen"), selection.size ? `${images(selection.size)} selected` : "");
  const counts = labelCounts(drawn);
  for (const node of all("#heads .here .class[data-value]")) {
    const having = counts.get(node.dataset.value) ?? 0;
    const state = having === 0 ? "false" : having === drawn.length ? "true" : "mixed";
    if (node.getAttribute("aria-pressed") !== state) node.setAttribute("aria-pressed", state);
  }
  write(one(".act.keep span", dock), head().kind === "multilabel" ? "All tags right" : "Label is right");
  one(".act.undo", dock).disabled = !model.state.can_undo && !model.units.length;
  one(".act.redo", dock).disabled = !model.state.can_redo;
}

export function markRange(on) {
  one(".act.range", dock).setAttribute("aria-pressed", on);
}

// ---- the search box ----------------------------------------------------------------------------------------------

export function find() {
  const input = one("input", search);
  input.value = "";
  write(one("label span", search), head().kind === "multilabel" ? "Tag" : "Class");
  list();
  search.showModal();
  input.focus();
}

function list() {
  const text = one("input", search).value.trim().toLowerCase();
  const at = (value) => value.toLowerCase().indexOf(text);
  const hits = head().classes.filter((value) => at(value) >= 0).sort((a, b) => at(a) - at(b));
  one("[role=listbox]", search).replaceChildren(...hits.slice(0, 40).map((value) =>
    button("", value, () => { search.close(); give(value); }, { role: "option" })));
  write(one(".none", search), hits.length ? "" : "No class has this in its name.");
}
