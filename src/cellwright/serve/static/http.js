// Requests to the server. Every answer that is no success becomes an Error with the server's own message.

/** 32 random hexadecimal digits. (`crypto.randomUUID` is missing on pages of other machines without encryption.) */
export const lot = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const CLIENT = lot(); // which tab this is

export class RequestError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

async function failure(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not JSON: the status says enough.
  }
  const message = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}`;
  return new RequestError(response.status, message, body);
}

async function send(method, url, { json, body, signal } = {}) {
  const headers = { "X-Client": CLIENT };
  if (json !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  }
  let response;
  try {
    response = await fetch(url, { method, headers, body, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "The server does not answer. Is `cellwright serve` still running?", null);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export const get = async (url, options) => (await send("GET", url, options)).json();
export const post = async (url, json, options) => (await send("POST", url, { json, ...options })).json();
export const remove = async (url) => (await send("DELETE", url)).json();
export const upload = async (name, file) =>
  (await send("POST", `/api/upload?name=${encodeURIComponent(name)}`, { body: file })).json();

/** A tile of the label layer: {rows, columns, data: Uint32Array}. */
export async function labelTile(url, signal) {
  const response = await send("GET", url, { signal });
  const buffer = await response.arrayBuffer();
  return {
    rows: Number(response.headers.get("X-Rows")),
    columns: Number(response.headers.get("X-Columns")),
    data: new Uint32Array(buffer),
  };
}

/** Labels of a changed box: base64 of zlib of little-endian uint32. */
export async function unpackLabels(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint32Array(await new Response(stream).arrayBuffer());
}

/** Server-sent events; the browser connects again by itself. `lost(true)` while there is no connection. */
export function events(handler, lost) {
  const source = new EventSource("/api/events");
  source.onmessage = (event) => handler(JSON.parse(event.data));
  source.onopen = () => lost(false);
  source.onerror = () => lost(true);
  return source;
}
