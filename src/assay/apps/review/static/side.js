// The column at the left: progress, queues, the random audit, training.

import { get, post } from "./api.js";
import { button, count, element, images, one, percent, printable, say, share, write } from "./dom.js";
import { model } from "./model.js";

const GROUPS = 12; // groups that are listed; the others on demand
let pick = () => {};
const open = new Set(); // queues whose groups are all listed

export function start(onPick) {
  pick = onPick;
  one("#audit form").addEventListener("submit", startAudit);
  one("#train .go").addEventListener("click", train);
  one("#train .copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(model.state.command);
    say("Command copied.");
  });
}

export function draw() {
  const { state } = model;
  write(one("#name"), state.name);
  document.title = `${printable(state.name)}: review`;
  drawProgress(state.progress);
  drawQueues(state.queues);
  drawAudit(state.random_audit);
  write(one("#train .command"), state.command ?? "");
  one("#train").hidden = !state.command;
  one("#train .go").hidden = one("#train .or").hidden = !state.trainer;
  write(one("#locked span"), state.locked ?? "");
  one("#locked").hidden = !state.locked;
  one("#map-button").hidden = !state.features;
}

// ---- progress ----------------------------------------------------------------------------------------------------

const interval = (low, high, as) => `${as(low)} to ${as(high)}`;

export function drawProgress(progress) {
  const { decided, wrong_found: wrong, wrong_left: left, validation, next_hundred: next, learning, working } = progress;
  const total = model.state.count;
  const about = left ? `about ${count(left.value)}` : "";
  fact("decided", "Decided", count(decided), `of ${images(total)}`);
  fact("wrong", "Wrong found", count(wrong), "");
  fact("left", "Wrong left, about", left ? count(left.value) : "", left ? interval(left.low, left.high, count) : "");
  fact("validation", `Validation ${printable(validation?.metric ?? "")}`.replaceAll("_", " ").replace("f1", "F1"), validation ? share(validation.value) : "",
    validation ? `${interval(validation.low, validation.high, share)}, n\u00a0=\u00a0${count(validation.n)}` : "");
  const meter = one("#progress .meter");
  meter.hidden = !left;
  if (left) {
    const reach = Math.max(1, wrong + left.high), place = (value) => `${(100 * value) / reach}%`;
    one(".fill", meter).style.width = place(wrong);
    Object.assign(one(".whisker", meter).style, { left: place(wrong + left.low), width: place(left.high - left.low) });
    meter.setAttribute("aria-label", `${count(wrong)} wrong labels settled, ${about} left`);
  }
  const line = one("#progress .next");
  const done = next !== null && next !== undefined && next < 2 && decided > 0;
  line.classList.toggle("done", done);
  line.hidden = next === null || next === undefined;
  if (!line.hidden) write(line, done ? "The next 100 would find fewer than 2 wrong labels: time to train." : `The next 100 would find about ${count(next)} wrong labels.`);
  const work = one("#progress .working");
  work.hidden = !working;
  write(work, working ?? "");
  one("#progress").classList.toggle("learning", Boolean(learning));
  write(one("#brief"), [`${count(decided)} decided`, `${count(wrong)} wrong`, left ? `${about} left` : ""].filter(Boolean).join(" · "));
}

function fact(name, words, value, detail) {
  const node = one(`#progress .${name}`);
  node.hidden = value === "";
  write(one("dt", node), words);
  write(one("b", node), value);
  write(one("small", node), detail);
}

// ---- queues ------------------------------------------------------------------------------------------------------

function drawQueues(queues) {
  const focus = document.activeElement?.dataset?.queue, list = one("#queues ul"), top = one("#side").scrollTop;
  list.replaceChildren(...queues.map((queue) => {
    const item = element("li"), here = queue.id === model.queue;
    item.append(line(queue, queue.id, "", here && !model.group));
    if (here && queue.groups?.length) item.append(groupList(queue));
    return item;
  }));
  one("#side").scrollTop = top;
  if (focus) one(`[data-queue="${CSS.escape(focus)}"]`, list)?.focus({ preventScroll: true });
}

function groupList(queue) {
  const list = element("ul", "groups"), long = queue.groups.length > GROUPS + 2 && !open.has(queue.id);
  const listed = long ? queue.groups.filter((group, at) => at < GROUPS || group.id === model.group) : queue.groups;
  list.append(...listed.map((group) => {
    const item = element("li");
    item.append(line(group, queue.id, group.id, group.id === model.group));
    return item;
  }));
  if (long) {
    const more = element("li");
    more.append(button("more", `all ${count(queue.groups.length)} groups`, () => { open.add(queue.id); drawQueues(model.state.queues); }));
    list.append(more);
  }
  return list;
}

function line(entry, queue, group, here) {
  const node = button("queue", "", () => pick(queue, group), here ? { "aria-current": "true" } : {});
  node.dataset.queue = `${queue}/${group}`;
  node.append(element("span", "title", entry.title), element("span", "count", count(entry.count)));
  node.classList.toggle("none", entry.count === 0);
  return node;
}

// The queue or group after the one in the grid, or before it.
export function neighbour(step) {
  const flat = model.state.queues.flatMap((queue) => {
    const groups = queue.id === model.queue ? queue.groups ?? [] : [];
    return [[queue.id, "", queue.count], ...groups.map((group) => [queue.id, group.id, group.count])];
  });
  const at = flat.findIndex(([queue, group]) => queue === model.queue && group === model.group);
  for (let index = at + step; index >= 0 && index < flat.length; index += step) if (flat[index][2]) return flat[index];
  return null;
}

// ---- random audit ------------------------------------------------------------------------------------------------

function drawAudit(audit) {
  const box = one("#audit");
  one("form", box).hidden = Boolean(audit) && audit.decided < audit.n;
  const result = one(".result", box);
  result.hidden = !audit;
  if (!audit) return;
  const estimate = audit.decided ? `${count(audit.wrong)} wrong: ${percent(audit.value)}, interval ${interval(audit.low, audit.high, percent)}` : "";
  const heads = model.state.heads.length, looked = heads > 1 ? `decided in all ${heads} rows of classes` : "looked at";
  write(result, `${count(audit.decided)} of ${count(audit.n)} ${looked}. ${estimate}`);
}

async function startAudit(event) {
  event.preventDefault();
  try {
    await post("api/random_audit", { n: Number(one("#audit input").value) });
    await pick("random_audit", "");
  } catch (error) {
    say(error.message, "bad");
  }
}

// ---- training ----------------------------------------------------------------------------------------------------

let polling = 0;

async function train() {
  try {
    await post("api/train", {});
    watchTraining();
  } catch (error) {
    say(error.message, "bad");
  }
}

export async function watchTraining() {
  clearTimeout(polling);
  try {
    const training = await get("api/train");
    drawTraining(training);
    if (training.state === "running") polling = setTimeout(watchTraining, 1500);
  } catch (error) {
    if (error.status !== 0) throw error;
    polling = setTimeout(watchTraining, 5000); // a banner says that the server does not answer
  }
}

function drawTraining({ state, line: text, worth }) {
  const box = one("#train"), running = state === "running";
  one(".go", box).disabled = running;
  box.dataset.state = state;
  write(one(".line", box), text ?? "");
  const gain = one(".worth", box);
  gain.hidden = !worth;
  if (!worth) return;
  const sign = (value) => (value < 0 ? "−" : "+") + share(Math.abs(value));
  write(gain, `${worth.metric.replaceAll("_", " ")} ${share(worth.with)} with the decisions, ${share(worth.without)} without: ` +
    `${sign(worth.gain)}, interval ${sign(worth.low)} to ${sign(worth.high)}, n = ${count(worth.n)}`);
  gain.className = `worth ${worth.low > 0 ? "up" : worth.high < 0 ? "down" : ""}`;
}
