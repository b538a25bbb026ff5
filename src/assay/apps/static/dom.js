// Elements, and texts that cannot do harm.

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export const one = (what, within = document) => within.querySelector(what);
export const all = (what, within = document) => [...within.querySelectorAll(what)];

// Characters that are not drawn or turn others around are written as codes.
export const printable = (text) => String(text).replace(UNSEEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

export const write = (node, text) => {
  const safe = printable(text);
  if (node.textContent !== safe) node.textContent = safe; // never as HTML
};

export const element = (name, className = "", text = "", attributes = {}) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== "") write(node, text);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

export const button = (className, text, act, attributes = {}) => {
  const node = element("button", className, text, { type: "button", ...attributes });
  node.addEventListener("click", act);
  return node;
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (value) => whole.format(value);
export const share = (value) => value.toFixed(3);
export const percent = (value) => (100 * value).toFixed(value < 0.1 ? 1 : 0) + " %";
export const images = (n) => count(n) + (n === 1 ? " image" : " images");

let timer = 0;
// A sentence at the foot of the page, which screen readers say.
export const say = (text, kind = "") => {
  const node = one("#toast");
  write(node, text);
  node.className = kind;
  clearTimeout(timer);
  timer = setTimeout(() => { node.className = "gone"; }, kind === "bad" ? 9000 : 3200);
};
