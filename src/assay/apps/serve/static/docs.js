// The requests of the server, drawn from its OpenAPI document.

import { element, one, write } from "./dom.js";

const base = location.href.replace(/docs\/?([?#].*)?$/, "");
const needed = (document, operation) => document.security && !operation.security; // an empty list: by anybody

function example(document, path, method, operation) {
  const words = ["curl"];
  if (needed(document, operation)) words.push("-H 'Authorization: Bearer TOKEN'");
  if (method === "post") words.push("-F images=@a.jpg");
  if (path === "/predict") words.push("-F images=@b.jpg");
  const query = { "/predict": "?top=3", "/explain": "?class=CLASS" }[path] ?? "";
  return [...words, query ? `'${base}${path.slice(1)}${query}'` : base + path.slice(1)].join(" ");
}

function table(title, rows) {
  if (!rows.length) return [];
  const body = element("table");
  for (const [name, text] of rows) {
    const row = element("tr");
    row.append(element("td", "", name), element("td", "", text));
    body.append(row);
  }
  return title ? [element("h3", "", title), body] : [body];
}

function fields(schema, prefix = "") {
  return Object.entries(schema?.properties ?? {}).flatMap(([name, field]) => {
    const inner = field.items ?? field.additionalProperties;
    const more = inner?.properties ? fields(inner, `${prefix}${name}${field.items ? "[]" : ".NAME"}.`) : [];
    return [[prefix + name, field.description ?? ""], ...more];
  });
}

function card(document, path, method, operation) {
  const node = element("article");
  node.append(element("h2", "", `${method.toUpperCase()} ${path}`), element("p", "", operation.summary + "."));
  node.append(element("pre", "", example(document, path, method, operation)));
  const json = operation.requestBody?.content["application/json"].schema;
  if (json) node.append(element("p", "", "Or JSON, with the header Content-Type: application/json:"), element("pre", "", '{"images": [{"data": "BASE64", "name": "a.jpg"}]}'));
  node.append(...table("In the address", (operation.parameters ?? []).map((one) => [one.name, one.description])));
  node.append(...table("In the answer", fields(operation.responses[200].content["application/json"]?.schema)));
  return node;
}

// All requests have the same errors; the first that may have all of them names them.
function errors({ responses }) {
  const node = element("article");
  node.append(element("h2", "", "Errors"), element("p", "", 'Each has a message: {"error": "..."}'));
  node.append(...table("", Object.entries(responses).filter(([status]) => status !== "200").map(([status, { description }]) => [status, description])));
  return node;
}

const contents = await (await fetch("openapi.json")).json();
write(one("#about"), contents.security ? "All but /healthz and /readyz need the token, as a header." : "No token is needed.");
for (const [path, methods] of Object.entries(contents.paths)) {
  for (const [method, operation] of Object.entries(methods)) one("#docs").append(card(contents, path, method, operation));
}
one("#docs").append(errors(contents.paths["/predict"].post));
