// What the page says of an answer's making, of errors and what to do about them, and of times.

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// All digits that matter, without the exponent that JavaScript gives small numbers.
const money = (cost) => cost.toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: false });

export function noteOf({ model_used: model, usage, timings, cost, finish_reason: reason }) {
  const pictures = usage.image_tokens ? `, ${usage.image_tokens} of them for pictures` : "";
  return [
    model,
    `${usage.prompt_tokens} tokens read${pictures}`,
    usage.reused_tokens && `${usage.reused_tokens} reused`,
    `${usage.completion_tokens} written`,
    cost !== null && cost !== undefined && `cost ${money(cost)}`,
    `first after ${seconds(timings.first_token_ms)}`,
    `done after ${seconds(timings.first_token_ms + timings.decode_ms)}`,
    reason === "length" && "cut off at the length limit",
    reason === "cancelled" && "stopped",
  ].filter(Boolean).join(" · ");
}

const WAITING = {
  overloaded: "The service is full.",
  part_unavailable: "A part of the service is being replaced.",
  session_busy: "Another question is being answered in this chat: wait for it.",
};
const ADVICE = {
  unreachable: "Check the connection, then try again.",
  unsure: "Try again: if it was answered meanwhile, its answer is shown instead.",
  deadline_exceeded: "Try again, or ask for something shorter.",
  lease_lost: "Try again.",
  image_too_large: "Make the picture smaller, or choose another one.",
  body_too_large: "Make the picture or the question smaller.",
  message_too_long: "Ask something shorter.",
  unsupported_image: "Save it as JPEG, PNG, WebP, GIF or BMP, or choose another one.",
  invalid_image: "Choose another picture.",
  image_not_found: "Add the picture again, or begin a new chat.",
  session_not_found: "It may have been deleted. Begin a new chat.",
  stream_not_found: "Ask again.",
  unknown_model: "Choose another model at the top of the page.",
  prompt_too_long: "Ask something shorter, or begin a new chat.",
  internal_error: "Try again. If it happens again, tell whoever runs this service the number above.",
};

export function adviceFor({ code, status, retryAfterS }) {
  const wait = retryAfterS ? `Try again in ${retryAfterS} s.` : "Try again in a moment.";
  if (code in WAITING) return `${WAITING[code]} ${wait}`;
  if (code in ADVICE) return ADVICE[code];
  if (status === 413) return ADVICE.body_too_large;
  return status >= 500 || retryAfterS ? wait : "Change the question, then ask again.";
}

export function timeOf(timestamp) {
  const then = new Date(timestamp);
  const isToday = then.toDateString() === new Date().toDateString();
  return then.toLocaleString(undefined, isToday ? { timeStyle: "short" } : { dateStyle: "medium" });
}
