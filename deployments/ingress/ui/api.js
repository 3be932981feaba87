// What the page asks of the server: each route it uses, and one shape for whatever goes wrong.

const PASSING = ["overloaded", "part_unavailable", "deadline_exceeded", "session_busy", "lease_lost", "internal_error"];

// status 0: the server was not reached, or its answer broke off.
export class ServerError extends Error {
  constructor(message, { status = 0, code = "unreachable", retryAfterS = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }

  // Later the same request may succeed.
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 500 || PASSING.includes(this.code);
  }
}

// An error's message as a sentence; the log has the details of an internal one under its request id. Without a status it
// is one of a stream.
export function fromBody({ code, message, request_id: id }, status = 400, retryAfterS = null) {
  const sentence = message.charAt(0).toUpperCase() + message.slice(1) + (/[.!?…]$/.test(message) ? "" : ".");
  return new ServerError(sentence + (code === "internal_error" ? ` (${id})` : ""), { status, code, retryAfterS });
}

async function request(path, options = {}) {
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new ServerError("The server cannot be reached.");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wait = Number(response.headers.get("Retry-After")) || null;
  if (body?.error) throw fromBody(body.error, response.status, wait);
  throw new ServerError(`The server answered ${response.status}.`, { status: response.status, code: "", retryAfterS: wait });
}

const asJson = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const json = async (path, options) => (await request(path, options)).json();
const history = (sessionId) => `chat/history/${encodeURIComponent(sessionId)}`;
const stream = (streamId) => `chat/streams/${encodeURIComponent(streamId)}`;

// Begins an answer. Returns its stream's id, and what to call as soon as somebody reads the stream: the reply to this
// request is the same stream, and it is given up, for EventSource reads it better than we would.
export async function ask(question, signal) {
  const response = await request("chat", { ...asJson({ ...question, stream: true, resumable: true }), signal });
  const address = new URL(response.headers.get("Content-Location"), response.url);
  return { streamId: decodeURIComponent(address.pathname.split("/").at(-1)), hangUp: () => response.body.cancel() };
}

export const streamAddress = (streamId, after) => `${stream(streamId)}?after=${after}`;

// Throws the ServerError for which nobody can read this stream; EventSource does not tell.
export async function checkStream(streamId, after) {
  const response = await request(streamAddress(streamId, after));
  response.body?.cancel().catch(() => {}); // broken off already
}

export const stop = (streamId) => request(`${stream(streamId)}/stop`, { method: "POST" });

export const renderMarkdown = async (texts) => (await json("ui/markdown", asJson({ texts }))).html;

export async function upload(file, signal) {
  const body = new FormData();
  body.set("image", file);
  return (await json("images", { method: "POST", body, signal })).id;
}

export const pictureAddress = (imageId) => `images/${encodeURIComponent(imageId)}`;
export const readHistory = (sessionId) => json(history(sessionId));
export const deleteHistory = (sessionId) => json(history(sessionId), { method: "DELETE" });
export const listSessions = (limit) => json(limit ? `chat/sessions?limit=${limit}` : "chat/sessions");

// Names of the models, and the one that answers where none is named.
export async function listModels() {
  const { data } = await json("v1/models");
  return { names: data.map(({ id }) => id), usual: data.find((one) => one.is_default).id };
}
