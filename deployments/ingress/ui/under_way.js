// Remembers over a reload which questions are under way, one for each chat.
import { load, save } from "./storage.js";

const KEY = "retina.under_way";
const KEPT_MS = 24 * 3600 * 1000;

function read() {
  const all = Object.entries(load(KEY) ?? {});
  return Object.fromEntries(all.filter(([, { askedMs }]) => Date.now() - askedMs < KEPT_MS));
}

export function remember({ sessionId, question, imageId, streamId }) {
  save(KEY, { ...read(), [sessionId]: { question, imageId, streamId, askedMs: Date.now() } });
}

export function forget(sessionId) {
  const { [sessionId]: _, ...others } = read();
  save(KEY, others);
}

// What Answer takes, or null.
export function recall(sessionId) {
  const asked = read()[sessionId];
  return asked ? { sessionId, question: asked.question, imageId: asked.imageId, streamId: asked.streamId } : null;
}
