// The chat page: asks POST /chat, shows the answer as it streams in. Text reaches the page through textContent only.
"use strict";

const byId = (id) => document.getElementById(id);
const [messages, status, form, question, file] = ["messages", "status", "form", "question", "file"].map(byId);
const SESSION = "retina.session_id";
let picture = null; // the File that goes with the next question
let running = null; // the AbortController of the answer under way

function say(text, isBad = false) {
  status.textContent = text;
  status.classList.toggle("bad", isBad);
}

function addMessage(role, text, note = "") {
  const item = document.createElement("li");
  const speaker = Object.assign(document.createElement("span"), { className: "unseen" });
  speaker.textContent = role === "user" ? "You: " : "Retina: ";
  const body = document.createElement("span");
  body.textContent = text;
  item.className = role;
  item.append(speaker);
  if (note) {
    const line = Object.assign(document.createElement("div"), { className: "note" });
    line.textContent = note;
    item.append(line);
  }
  item.append(body);
  messages.append(item);
  item.scrollIntoView({ block: "end" });
  return { item, body };
}

function choosePicture(chosen) {
  if (chosen && !chosen.type.startsWith("image/")) return say(`${chosen.name} is not a picture.`, true);
  if (byId("preview").src) URL.revokeObjectURL(byId("preview").src);
  picture = chosen;
  file.value = "";
  byId("picture").hidden = !chosen;
  if (chosen) byId("preview").src = URL.createObjectURL(chosen);
  else byId("preview").removeAttribute("src");
}

// The events of a text/event-stream body: [name, data] each.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((l) => l.startsWith(name)).map((l) => l.slice(name.length)).join("\n");
      if (field("data: ")) yield [field("event: "), JSON.parse(field("data: "))];
    }
  }
}

async function request(path, options) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  const reply = await response.json().catch(() => null);
  const failure = new Error(reply?.error?.message ?? `The server answered ${response.status}.`);
  throw Object.assign(failure, { status: response.status });
}

async function ask(text, image) {
  const data = new FormData();
  data.set("message", text);
  data.set("stream", "true");
  const session = localStorage.getItem(SESSION);
  if (session) data.set("session_id", session);
  if (image) data.set("image", image);
  const response = await request("chat", { method: "POST", body: data, signal: running.signal });
  const answer = addMessage("assistant", "");
  answer.item.setAttribute("aria-busy", "true"); // read out when it is whole, not word by word
  try {
    for await (const [name, event] of eventsOf(response.body)) {
      if (name === "chunk") answer.body.textContent += event.text;
      if (name === "done") return localStorage.setItem(SESSION, event.session_id);
      if (name === "error") throw new Error(event.error.message);
      answer.item.scrollIntoView({ block: "end" });
    }
    throw new Error("The connection broke off.");
  } catch (error) {
    answer.item.remove();
    throw error;
  } finally {
    answer.item.removeAttribute("aria-busy");
  }
}

async function submit() {
  const text = question.value.trim();
  if (running || !text) return;
  const image = picture;
  const mine = addMessage("user", text);
  if (image) {
    const shown = Object.assign(document.createElement("img"), { alt: "Your picture", src: URL.createObjectURL(image) });
    shown.onload = () => URL.revokeObjectURL(shown.src);
    mine.item.append(shown);
  }
  running = new AbortController();
  toggleBusy(true);
  try {
    await ask(text, image);
    question.value = "";
    choosePicture(null);
    say("");
  } catch (error) {
    mine.item.remove(); // the session is as it was; the question stays in its box
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    running = null;
    toggleBusy(false);
    question.focus();
  }
}

function toggleBusy(isBusy) {
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("new").disabled = isBusy;
  if (isBusy) say("Looking and thinking…");
}

async function showHistory() {
  const session = localStorage.getItem(SESSION);
  if (!session) return;
  try {
    const reply = await (await request(`chat/history/${encodeURIComponent(session)}`)).json();
    for (const { role, content } of reply.history) {
      const text = content.filter((part) => part.type === "text").map((part) => part.text).join("");
      addMessage(role, text, content.some((part) => part.type === "image") ? "(with a picture)" : "");
    }
  } catch (error) {
    if (error.status !== 404) return say(error.message, true);
    localStorage.removeItem(SESSION); // it was deleted, or was the longest unused
  }
}

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
file.addEventListener("change", () => file.files[0] && choosePicture(file.files[0]));
byId("remove").addEventListener("click", () => choosePicture(null));
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  localStorage.removeItem(SESSION);
  messages.replaceChildren();
  choosePicture(null);
  say("");
  question.focus();
});
document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  if (pasted) choosePicture(pasted);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
document.addEventListener("dragleave", () => form.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  form.classList.remove("over");
  if (event.dataTransfer.files[0]) choosePicture(event.dataTransfer.files[0]);
});
showHistory();
