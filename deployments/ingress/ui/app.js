// The chat page: asks POST /chat, shows the answer as it streams in. Text reaches the page through textContent only.
"use strict";

const byId = (id) => document.getElementById(id);
const [messages, status, form, question, file] = ["messages", "status", "form", "question", "file"].map(byId);
const [main, past, pending] = ["main", "past", "pending"].map(byId);
const [preview, send, stop, drop, model] = ["preview", "send", "stop", "drop", "model"].map(byId);
const [SESSION, MODEL] = ["retina.session_id", "retina.model"];
let picture = null; // the File that goes with the next question
let wishedModel = ""; // chosen by the reader here; a session goes on with its own model otherwise
let running = null; // the AbortController of the answer under way
let isAtEnd = true; // not so once a reader has scrolled up: then new text does not pull the page down
let lastTop = 0;

function say(text, isBad = false) {
  status.textContent = text;
  status.classList.toggle("bad", isBad);
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function makeMessage(role, text, note = "") {
  const item = make("article", role);
  const body = make("div", "text", text);
  body.dir = "auto";
  item.append(make("h2", "", role === "user" ? "You" : "Retina"), body);
  if (note) item.append(make("p", "note", note));
  return { item, body };
}

function makePicture(image) {
  const shown = Object.assign(make("img", ""), { alt: "The picture of this question", src: URL.createObjectURL(image) });
  shown.onload = () => URL.revokeObjectURL(shown.src);
  shown.onerror = () => shown.replaceWith(make("p", "note", "with a picture"));
  return shown;
}

function showWelcome() {
  byId("welcome").hidden = main.querySelector("article") !== null;
}

function usageLine({ model_used: model, usage, timings, finish_reason: reason }) {
  const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
  const pictures = usage.image_tokens ? `, ${usage.image_tokens} of them for pictures` : "";
  return [
    model,
    `${usage.prompt_tokens} tokens read${pictures}`,
    usage.reused_tokens && `${usage.reused_tokens} reused`,
    `${usage.completion_tokens} written`,
    `first after ${seconds(timings.first_token_ms)}`,
    `done after ${seconds(timings.first_token_ms + timings.decode_ms)}`,
    reason === "length" && "cut off at the length limit",
  ].filter(Boolean).join(" · ");
}

function choosePicture(chosen) {
  if (chosen && !chosen.type.startsWith("image/")) return say(`“${chosen.name}” is not a picture.`, true);
  if (preview.src) URL.revokeObjectURL(preview.src);
  picture = chosen;
  file.value = "";
  byId("picture").hidden = preview.hidden = !chosen;
  byId("name").textContent = chosen?.name ?? "";
  say("");
  if (!chosen) return preview.removeAttribute("src");
  preview.src = URL.createObjectURL(chosen);
  question.focus();
}

function toggleBusy(isBusy) {
  const active = document.activeElement;
  send.hidden = isBusy;
  stop.hidden = !isBusy;
  byId("new").disabled = isBusy;
  if (active === send) stop.focus();
  else if (active === stop) (matchMedia("(pointer: coarse)").matches ? send : question).focus();
}

// The events of a text/event-stream body: [name, data] each.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((l) => l.startsWith(name)).map((l) => l.slice(name.length)).join("\n");
      if (field("data: ")) yield [field("event: "), JSON.parse(field("data: "))];
    }
  }
}

// An error's message as a sentence; the log has the details of an internal one under its request id.
const wordsOf = ({ code, message, request_id: id }) =>
  message.charAt(0).toUpperCase() + message.slice(1) + (code === "internal_error" ? ` (${id})` : "");

async function request(path, options) {
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  const reply = await response.json().catch(() => null);
  const words = reply?.error ? wordsOf(reply.error) : `The server answered ${response.status}.`;
  throw Object.assign(new Error(words), { status: response.status });
}

// Streams the answer into `body`; returns the data of `done`.
async function ask(text, image, body) {
  const data = new FormData();
  const session = localStorage.getItem(SESSION);
  const fields = { message: text, stream: "true", session_id: session, model: session ? wishedModel : model.value, image };
  for (const [name, value] of Object.entries(fields)) if (value) data.set(name, value);
  const response = await request("chat", { method: "POST", body: data, signal: running.signal });
  try {
    for await (const [name, event] of eventsOf(response.body)) {
      if (name === "chunk") { body.textContent += event.text; say(""); }
      if (name === "done") return event;
      if (name === "error") throw new Error(wordsOf(event.error));
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // a TypeError is the network's
  }
  throw new Error("The connection broke off.");
}

async function submit() {
  const text = question.value.trim();
  if (running) return;
  if (!text) return say("Write a question first.", true);
  const image = picture;
  const mine = makeMessage("user", text);
  const answer = makeMessage("assistant", "");
  if (image) mine.item.append(makePicture(image));
  question.value = "";
  choosePicture(null);
  running = new AbortController();
  messages.append(mine.item);
  pending.append(answer.item);
  toggleBusy(true);
  showWelcome();
  isAtEnd = true;
  say(image ? "Looking at the picture…" : "Thinking…");
  try {
    const done = await ask(text, image, answer.body);
    localStorage.setItem(SESSION, done.session_id);
    model.value = done.model_used;
    answer.item.append(make("p", "note", usageLine(done)));
    messages.append(answer.item);
  } catch (error) {
    // The session is as it was: the question goes back to its box.
    question.value = [text, question.value].filter(Boolean).join("\n");
    if (image && !picture) choosePicture(image);
    const isStopped = error.name === "AbortError";
    if (isStopped && answer.body.textContent) {
      for (const { item } of [mine, answer]) item.classList.add("dropped");
      answer.item.append(make("p", "note", "Stopped: not part of the conversation."));
      messages.append(answer.item);
    } else {
      mine.item.remove();
      answer.item.remove();
    }
    say(isStopped ? "Stopped. Your question is back in its box." : error.message, !isStopped);
  } finally {
    running = null;
    toggleBusy(false);
    showWelcome();
  }
}

async function showHistory() {
  const session = localStorage.getItem(SESSION);
  try {
    if (!session) return;
    const reply = await (await request(`chat/history/${encodeURIComponent(session)}`)).json();
    if (localStorage.getItem(SESSION) !== session) return; // a new chat was begun meanwhile
    const items = reply.history.map(({ role, content }) => {
      const text = content.filter((part) => part.type === "text").map((part) => part.text).join("");
      return makeMessage(role, text, content.some((part) => part.type === "image") ? "with a picture" : "").item;
    });
    past.append(...items);
  } catch (error) {
    if (error.status !== 404) return say(error.message, true);
    localStorage.removeItem(SESSION); // it was deleted, or was the longest unused
  } finally {
    showWelcome();
  }
}

// A choice of models, where there is one; any question may go to another one than the question before.
async function showModels() {
  const { models, default_model: usual } = await (await request("-/config")).json();
  model.replaceChildren(...models.map(({ name }) => new Option(name, name)));
  const names = models.map(({ name }) => name);
  const wished = localStorage.getItem(MODEL);
  model.value = [wished, usual, names[0]].find((name) => names.includes(name));
  model.hidden = names.length < 2;
}

model.addEventListener("change", () => {
  localStorage.setItem(MODEL, wishedModel = model.value);
  question.focus();
});
form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
for (const id of ["choose", "zone"]) byId(id).addEventListener("click", () => file.click());
file.addEventListener("change", () => file.files[0] && choosePicture(file.files[0]));
preview.addEventListener("error", () => {
  preview.hidden = true;
  if (picture && !status.textContent) say(`“${picture.name}” cannot be shown here.`, true);
});
byId("remove").addEventListener("click", () => { choosePicture(null); question.focus(); });
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
byId("new").addEventListener("click", () => {
  localStorage.removeItem(SESSION);
  for (const part of [past, messages]) part.replaceChildren();
  choosePicture(null);
  showWelcome();
  question.focus();
});
document.addEventListener("paste", ({ clipboardData: { files } }) => {
  if (files.length) choosePicture([...files].find((f) => f.type.startsWith("image/")) ?? files[0]);
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files"); // other things may be dropped into the box
document.addEventListener("dragover", (event) => {
  drop.hidden = !hasFiles(event);
  if (!drop.hidden) event.preventDefault();
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
document.addEventListener("drop", (event) => {
  drop.hidden = true;
  if (hasFiles(event)) event.preventDefault();
  if (event.dataTransfer.files[0]) choosePicture(event.dataTransfer.files[0]);
});
main.addEventListener("scroll", () => {
  const isNear = main.scrollHeight - main.scrollTop - main.clientHeight < 40;
  isAtEnd = isNear || (isAtEnd && main.scrollTop >= lastTop);
  lastTop = main.scrollTop;
});
const sizes = new ResizeObserver(() => { if (isAtEnd) main.scrollTop = main.scrollHeight; });
for (const part of [main, past, messages, pending]) sizes.observe(part);
showModels().catch((error) => say(error.message, true));
showHistory();
