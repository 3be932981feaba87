// An answer's text as it grows: markup as far as the server has made it, and behind that, as plain text, what has come since.
import { make } from "./elements.js";
import { toFragments } from "./markdown.js";

const PAUSE_MS = 400; // between two requests
const REST = 10; // a request that takes long is made more seldom: a tenth of the time at most
const BLOCKS = "p, ul, ol, li, blockquote, pre, pre > code, h3, h4, h5, h6";

export class LiveText {
  #body;
  #text = "";
  #numShown = 0; // characters that are markup
  #tail = make("span", "plain");
  #frame = 0;
  #isAsking = false;
  #hasEnded = false;

  constructor(body) {
    this.#body = body;
  }

  // Drawn at most once a frame, however fast the pieces come.
  grow(text) {
    this.#text = text;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
    if (!this.#isAsking) this.#keepAsking();
  }

  // Shows all at once; resolves when it is markup, or will not be.
  async end(text) {
    this.#hasEnded = true;
    this.#text = text;
    cancelAnimationFrame(this.#frame);
    this.#draw();
    const [fragment] = await toFragments([text]);
    if (fragment) this.#body.replaceChildren(fragment);
  }

  #draw() {
    this.#frame = 0;
    this.#tail.textContent = this.#text.slice(this.#numShown);
    if (!this.#tail.isConnected) this.#body.append(this.#tail);
  }

  // One request after another, so that they cannot overtake each other; none any more once one has failed.
  async #keepAsking() {
    this.#isAsking = true;
    for (let pauseMs = PAUSE_MS; ; ) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      const text = this.#text.trimEnd();
      if (this.#hasEnded) return;
      if (text.length === this.#numShown) break;
      const begunMs = performance.now();
      const [fragment] = await toFragments([text]);
      if (this.#hasEnded || !fragment) return;
      this.#show(fragment, text.length);
      pauseMs = Math.max(PAUSE_MS, REST * (performance.now() - begunMs));
    }
    this.#isAsking = false;
  }

  #show(fragment, numChars) {
    this.#numShown = numChars;
    this.#body.replaceChildren(fragment);
    endOf(this.#body).append(this.#tail);
    this.#draw();
  }
}

// Where the next words most likely belong.
function endOf(body) {
  let end = body;
  while (end.lastElementChild?.matches(BLOCKS)) end = end.lastElementChild;
  if (end.matches("code")) end.textContent = end.textContent.trimEnd(); // the line goes on
  return end;
}
