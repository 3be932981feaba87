// Remembers what was said of the making of answers, in this browser and for the newest chats: histories hold texts only.
import { load, save } from "./storage.js";

const KEY = "retina.notes";
const [MAX_CHATS, MAX_NOTES] = [100, 10];

export function rememberNote(sessionId, text, note) {
  const { [sessionId]: own = [], ...others } = load(KEY) ?? {};
  const kept = Object.fromEntries(Object.entries(others).slice(1 - MAX_CHATS));
  save(KEY, { ...kept, [sessionId]: [...own, { sign: signOf(text), note }].slice(-MAX_NOTES) });
}

export function forgetNotes(sessionId) {
  const { [sessionId]: _, ...others } = load(KEY) ?? {};
  save(KEY, others);
}

// For each of these answers, oldest first, its note, or "" where it was given to somebody else.
export function recallNotes(sessionId, texts) {
  const notes = [...(load(KEY)?.[sessionId] ?? [])];
  const found = texts.toReversed().map((text) => (notes.at(-1)?.sign === signOf(text) ? notes.pop().note : ""));
  return found.reverse();
}

// Enough to tell the answers of one chat apart.
function signOf(text) {
  let sum = text.length;
  for (const letter of text) sum = (Math.imul(sum, 31) + letter.codePointAt(0)) | 0;
  return sum;
}
