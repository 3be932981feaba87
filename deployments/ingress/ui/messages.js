// The elements of messages: a question with its picture, an answer with its text, its note and a button that copies it.
import { pictureAddress } from "./api.js";
import { make, makeButton } from "./elements.js";
import { LiveText } from "./live_text.js";
import { toFragments } from "./markdown.js";
import { timeOf } from "./words.js";

function makeMessage(role, timestamp) {
  const heading = make("h2", "", role === "user" ? "You" : "Retina");
  if (timestamp) heading.append(" ", Object.assign(make("time", "", timeOf(timestamp)), { dateTime: timestamp }));
  const body = make("div", "text");
  body.dir = "auto";
  const item = make("article", role, heading, body);
  return { item, body };
}

export function makeQuestion(text, picture = "", timestamp = "") {
  const { item, body } = makeMessage("user", timestamp);
  body.append(text);
  if (picture) item.append(makePicture(picture));
  return item;
}

function makePicture(address) {
  const image = Object.assign(make("img"), { alt: "The picture of this question", src: address });
  image.addEventListener("error", () => image.replaceWith(make("p", "note", "with a picture that cannot be shown")));
  if (address.startsWith("blob:")) return image;
  const link = Object.assign(make("a", "picture", image), { href: address, target: "_blank", rel: "noopener" });
  return link;
}

// An answer that grows.
export class AnswerView {
  #text;

  constructor(timestamp) {
    const { item, body } = makeMessage("assistant", timestamp);
    this.item = item;
    this.#text = new LiveText(body);
  }

  grow(text) {
    this.#text.grow(text);
  }

  async end(text, note) {
    this.item.append(makeFoot(text, note));
    this.item.ariaBusy = "true"; // a screen reader waits for the looks
    await this.#text.end(text);
    this.item.ariaBusy = null;
  }
}

function makeAnswer(text, timestamp, note) {
  const { item, body } = makeMessage("assistant", timestamp);
  body.append(make("span", "plain", text));
  item.append(makeFoot(text, note));
  return item;
}

// The answers among these messages of a history, all at once.
export async function showMarkup(items) {
  const bodies = items.filter((item) => item.matches(".assistant")).map((item) => item.querySelector(".text"));
  for (const body of bodies) body.parentElement.ariaBusy = "true";
  const fragments = await toFragments(bodies.map((body) => body.textContent));
  for (const [place, body] of bodies.entries()) {
    if (fragments[place]) body.replaceChildren(fragments[place]);
    body.parentElement.ariaBusy = null;
  }
}

function makeFoot(text, note) {
  return make("div", "foot", ...(note ? [make("p", "note", note)] : []), makeCopyButton(text));
}

function makeCopyButton(text) {
  const button = makeButton("Copy", async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }, "small");
  button.setAttribute("aria-live", "polite");
  button.setAttribute("aria-description", "the answer");
  return button;
}

// Browsers give pages the clipboard over HTTPS and on the own machine; elsewhere the old way works.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const active = document.activeElement;
  const area = make("textarea", "unseen");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  active?.focus();
  return isCopied;
}

// Of one message of a history.
export function fromHistory(message, imageId, note) {
  const { role, content, timestamp } = message;
  if (role === "assistant") return makeAnswer(textOf(message), timestamp, note);
  const hasPicture = imageId && content.some((part) => part.type === "image");
  return makeQuestion(textOf(message), hasPicture ? pictureAddress(imageId) : "", timestamp);
}

export function textOf({ content }) {
  return content.filter((part) => part.type === "text").map((part) => part.text).join("");
}
