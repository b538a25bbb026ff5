// The page: images are dropped, and each has a card with its answer, where that comes from, and its neighbours.

import { button, count, element, one, write } from "./dom.js";

const AT_A_TIME = 2; // images that wait for their answer
const CARDS = 60; // the oldest goes
const BARS = 6; // classes of a head
const COVERAGE = 0.9; // of sets
const FOREIGN = 0.99; // validation images that are less unlike the training images
const waiting = [];
let working = 0, model = null;
let token = sessionStorage.getItem("token") ?? "";

async function ask(address, options = {}) {
  const response = await fetch(address, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error ?? `the server answers ${response.status}.`), { status: response.status });
}

async function start() {
  one("#ask").hidden = true;
  try {
    model = await ask("model");
  } catch (error) {
    one("#ask").hidden = error.status !== 401;
    problem(error.status !== 401 ? error.message : token ? "This is not its token." : "");
    return one("#token").focus();
  }
  problem("");
  write(one("#name"), model.model);
  document.title = model.model;
  const classes = model.heads.map((head) => (model.heads.length > 1 ? `${head.name}: ` : "") + `${count(head.classes.length)} ${head.kind === "multilabel" ? "tags" : "classes"}`);
  write(one("#about"), classes.join("; ") + (model.compared ? `; compared with ${count(model.compared)} training images` : ""));
  one("#drop").hidden = false;
}

function problem(text) {
  one("#problem").hidden = !text;
  write(one("#problem"), text);
}

function take(files) {
  const images = [...files];
  if (!model || !images.length) return;
  const cards = images.map((file) => {
    const card = one("#card").content.firstElementChild.cloneNode(true);
    waiting.push({ file, card });
    fill(card, file);
    return card;
  });
  one("#answers").prepend(...cards);
  while (one("#answers").children.length > CARDS) remove(one("#answers").lastElementChild);
  next();
}

function fill(card, file) {
  const given = one(".given img", card);
  given.src = URL.createObjectURL(file);
  given.addEventListener("error", () => {
    given.parentNode.classList.add("gone");
    write(one(".given figcaption", card), "This browser does not show images of this format.");
  });
  write(one(".file", card), file.name);
  one(".close", card).addEventListener("click", () => remove(card));
}

function remove(card) {
  URL.revokeObjectURL(one(".given img", card).src);
  card.remove();
}

async function next() {
  if (working >= AT_A_TIME || !waiting.length) return;
  working += 1;
  const { file, card } = waiting.shift();
  if (card.isConnected) await answer(file, card);
  working -= 1;
  next();
}

async function answer(file, card) {
  try {
    const { predictions: [prediction] } = await ask(`predict?top=${BARS}${model.sets ? `&coverage=${COVERAGE}` : ""}`, { method: "POST", body: form(file) });
    one(".wait", card).hidden = true;
    drawAnswer(card, file, prediction);
    if (model.explains) await explain(card, file);
    else note(card, "This model is of several networks, and each looks at an image in a way of its own: nothing is explained.");
  } catch (error) {
    one(".wait", card).hidden = one(".body", card).hidden = true;
    one(".error", card).hidden = false;
    write(one(".error", card), error.message);
  }
}

function form(file) {
  const data = new FormData();
  data.append("images", file, file.name);
  return data;
}

function drawAnswer(card, file, { heads, unlike_training: unlike }) {
  one(".answer", card).replaceChildren(...model.heads.map(({ name }) => {
    const { label, probabilities } = heads[name], box = element("div", "head");
    const labels = Array.isArray(label) ? label : [label];
    if (model.heads.length > 1) box.append(element("h3", "", name));
    box.append(element("b", "label", labels.join(", ") || "no tag"));
    for (const [value, probability] of Object.entries(probabilities)) box.append(bar(card, file, { head: name, value, probability, predicted: labels.includes(value) }));
    const set = heads[name].set ?? [], least = Array.isArray(label) ? 0 : 1;
    if (set.length > least) box.append(element("p", "hint", `In ${100 * COVERAGE} of 100 ${least ? "images it is one" : "tags it is"} of: ${set.join(", ")}`));
    return box;
  }));
  if (unlike >= FOREIGN) one(".answer", card).append(element("p", "hint", `Unlike the training images, more than ${Math.floor(100 * unlike)} of 100 images are: the answer may mean nothing.`));
  if (model.explains) one(".answer", card).append(element("p", "hint", "Click a class to see what speaks for it."));
}

function bar(card, file, { head, value, probability, predicted }) {
  const row = button("bar", "", () => explain(card, file, head, value), { "data-head": head, "data-class": value, "aria-pressed": "false" });
  const meter = element("i", "meter"), fill = element("i", "fill");
  fill.style.width = `${100 * probability}%`;
  meter.append(fill);
  row.append(element("span", predicted ? "given" : "", value), meter, element("span", "number", probability.toFixed(2)));
  row.title = `Where ${value} comes from`;
  row.disabled = !model.explains;
  return row;
}

// Where a class comes from; without one, the first that is predicted. Answers come in any order: the last click counts.
async function explain(card, file, head = "", value = "") {
  const mine = (card.asked = Symbol());
  const query = value ? `?${new URLSearchParams({ class: value })}` : "";
  const made = await ask(`explain${query}`, { method: "POST", body: form(file) }).catch((error) => card.asked === mine && note(card, error.message));
  if (!made || !card.isConnected || card.asked !== mine) return;
  const cam = made.cams.find((one) => one.head === head && one.label === value) ?? made.cams[0];
  one(".cam", card).hidden = false;
  one(".cam img", card).src = cam.image;
  write(one(".cam figcaption", card), `bright: what speaks for ${cam.label}`);
  for (const row of card.querySelectorAll(".bar")) row.setAttribute("aria-pressed", row.dataset.head === cam.head && row.dataset.class === cam.label);
  drawNeighbours(card, made.neighbours);
  note(card, made.note);
}

function drawNeighbours(card, list) {
  one(".near", card).hidden = !list.length;
  one(".neighbours", card).replaceChildren(...list.map(({ labels, similarity, image }) => {
    const text = Object.values(labels).join("; "), node = element("figure", "neighbour", "", { title: text });
    node.append(element("img", "", "", { src: image, alt: "" }), element("span", "", text), element("small", "", similarity.toFixed(2)));
    return node;
  }));
}

function note(card, text) {
  one(".note", card).hidden = !text;
  write(one(".note", card), text);
}

const drop = one("#drop");
addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
one("#files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file may be chosen again
});
one("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = one("#token").value.trim();
  sessionStorage.setItem("token", token);
  start();
});
start();
