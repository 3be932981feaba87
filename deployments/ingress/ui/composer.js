// The box to ask in: the question, its picture by file, camera, paste or drop, and what the page says of both.
import { byId } from "./elements.js";
import { Picture } from "./picture.js";
import { adviceFor } from "./words.js";

const [status, problem, form, question, preview] = ["status", "problem", "form", "question", "preview"].map(byId);
const [send, stop, drop, retry, file, photo] = ["send", "stop", "drop", "retry", "file", "photo"].map(byId);
let picture = null; // that goes with the next question
let onAsk = () => {};
let onRetry = null;

export function say(text) {
  status.textContent = text;
}

// An error, with what to do about it. `again` does it again, where that may help.
export function showProblem(error, again = null) {
  say("");
  byId("what").textContent = error.message;
  byId("next").textContent = "status" in error ? adviceFor(error) : "";
  onRetry = again;
  retry.hidden = !again;
  problem.hidden = false;
}

export function clearProblem() {
  problem.hidden = true;
}

export function listen({ ask, stop: onStop }) {
  onAsk = ask;
  stop.addEventListener("click", onStop);
}

export function showRunning(isRunning) {
  const active = document.activeElement;
  send.hidden = isRunning;
  stop.hidden = !isRunning;
  if (active === send && isRunning) stop.focus();
  else if (active === stop && !isRunning) focusQuestion();
}

// On a phone the focus would bring up the keyboard over the answer.
export function focusQuestion() {
  (matchMedia("(pointer: coarse)").matches ? send : question).focus();
}

export function putBack(text, itsPicture) {
  question.value = [text, question.value].filter(Boolean).join("\n");
  if (itsPicture && !picture) showPicture(itsPicture);
}

// Empties the box, unless something else stands in it by now.
export function takeBack(text) {
  if (question.value.trim() !== text) return false;
  question.value = "";
  removePicture();
  return true;
}

function showPicture(chosen) {
  picture = chosen;
  byId("picture").hidden = preview.hidden = !chosen;
  byId("name").textContent = chosen?.name ?? "";
  if (chosen) preview.src = chosen.address;
  else preview.removeAttribute("src");
}

export function removePicture() {
  picture?.drop();
  showPicture(null);
}

function choose(chosen) {
  clearProblem();
  if (!chosen.type.startsWith("image/")) return showProblem(new Error(`“${chosen.name}” is not a picture.`));
  removePicture();
  const mine = Picture.fromFile(chosen);
  showPicture(mine);
  question.focus();
  mine.send().catch((error) => {
    if (picture !== mine || error.isPassing || error.name === "AbortError") return; // asking sends it again
    removePicture();
    showProblem(error);
  });
}

export function submit() {
  const text = question.value.trim();
  if (send.hidden) return;
  if (!text) {
    question.focus();
    return say(picture ? "Write a question about the picture first." : "Write a question first.");
  }
  const mine = picture;
  question.value = "";
  showPicture(null);
  clearProblem();
  onAsk(text, mine);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
question.addEventListener("input", () => say(""));
retry.addEventListener("click", () => {
  clearProblem();
  onRetry();
});
byId("dismiss").addEventListener("click", () => {
  clearProblem();
  focusQuestion();
});
for (const [button, input] of [["choose", file], ["zone", file], ["camera", photo]]) {
  byId(button).addEventListener("click", () => input.click());
}
for (const input of [file, photo]) {
  input.addEventListener("change", () => {
    if (input.files[0]) choose(input.files[0]);
    input.value = "";
  });
}
preview.addEventListener("error", () => (preview.hidden = true));
byId("remove").addEventListener("click", () => {
  removePicture();
  question.focus();
});
document.addEventListener("paste", (event) => {
  const { files: given, types } = event.clipboardData;
  const files = [...given];
  if (!files.length || (types.includes("text/plain") && types.includes("text/html"))) return; // text, and its looks
  event.preventDefault(); // of the picture's name as text
  choose(files.find((one) => one.type.startsWith("image/")) ?? files[0]);
});

const hasFiles = (event) => event.dataTransfer.types.includes("Files"); // other things may be dropped into the box
document.addEventListener("dragover", (event) => {
  drop.hidden = !hasFiles(event);
  if (!drop.hidden) event.preventDefault();
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.hidden = true;
});
document.addEventListener("drop", (event) => {
  drop.hidden = true;
  if (hasFiles(event)) event.preventDefault();
  if (event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
});
