// The conversation that is open: its history, its new messages, and the answer that comes in.
import { byId } from "./elements.js";
import { AnswerView, fromHistory, makeQuestion, showMarkup, textOf } from "./messages.js";
import { recallNotes } from "./notes.js";
import { noteOf } from "./words.js";

const [main, past, messages, pending, newest] = ["main", "past", "messages", "pending", "newest"].map(byId);
let isAtEnd = true; // not so once a reader has scrolled up: then new text does not pull the page down
let lastTop = 0;

export function clear() {
  for (const part of [past, messages, pending]) part.replaceChildren();
  toEnd();
}

export function showWelcome() {
  byId("welcome").hidden = main.querySelector("article") !== null;
}

export const numQuestions = () => main.querySelectorAll("article.user").length;

export function showHistory({ session_id: sessionId, history, image_id: imageId }) {
  const answers = history.filter(({ role }) => role === "assistant");
  const notes = recallNotes(sessionId, answers.map(textOf));
  const items = history.map((message) => fromHistory(message, imageId, notes[answers.indexOf(message)]));
  past.replaceChildren(...items);
  showMarkup(items);
  toEnd();
}

// Shows an answer as it grows; returns what to do with it in the end.
export function begin(answer, pictureAddress) {
  const now = new Date().toISOString();
  const question = makeQuestion(answer.question, pictureAddress, now);
  const view = new AnswerView(now);
  messages.append(question);
  pending.replaceChildren(view.item);
  showWelcome();
  toEnd();
  return {
    grow: () => answer.text && view.grow(answer.text),
    keep() {
      view.end(answer.text, noteOf(answer.reply));
      messages.append(view.item);
    },
    remove() {
      question.remove();
      view.item.remove();
      showWelcome();
    },
  };
}

export function toEnd() {
  isAtEnd = true;
  main.scrollTop = main.scrollHeight;
  newest.hidden = true;
}

main.addEventListener("scroll", () => {
  const isNear = main.scrollHeight - main.scrollTop - main.clientHeight < 40;
  isAtEnd = isNear || (isAtEnd && main.scrollTop >= lastTop);
  lastTop = main.scrollTop;
  newest.hidden = isAtEnd;
});
newest.addEventListener("click", toEnd);
const sizes = new ResizeObserver(() => isAtEnd && (main.scrollTop = main.scrollHeight));
for (const part of [main, past, messages, pending]) sizes.observe(part);
