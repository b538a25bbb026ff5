// Requests to the server of this page: addresses are relative, so that they carry its token.

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer.", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = response.statusText || "Error";
  if (text.startsWith("{")) message = JSON.parse(text).error ?? message;
  throw new Refusal(message, response.status);
}

const json = { "Content-Type": "application/json" };

export const get = async (address) => (await request(address, { cache: "no-store" })).json();

export const post = async (address, body, signal) =>
  (await request(address, { method: "POST", headers: json, body: JSON.stringify(body), signal })).json();

export async function numbers(address, Kind) {
  const response = await request(address, { cache: "no-store" });
  const values = new Kind(await response.arrayBuffer()); // little-endian, as all machines with a browser are
  return { values, version: Number(response.headers.get("X-Assay-Version")) };
}

// Hears events of the server. A hidden window gives its connection back: a browser has six for one server, over all
// its windows.
export function listen(hear, lost) {
  let source = null, timer = 0;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    if (document.hidden) return;
    source = new EventSource("api/events");
    source.onmessage = (event) => hear(JSON.parse(event.data));
    source.onerror = () => {
      lost();
      if (source?.readyState === EventSource.CLOSED) timer = setTimeout(open, 3000); // else it connects again by itself
    };
  };
  document.addEventListener("visibilitychange", open);
  addEventListener("pagehide", close);
  open();
}
