// One question under way: asked, followed over broken connections, stopped. Every piece of its text is taken once.
import * as api from "./api.js";
import { listen } from "./events.js";

const UNSURE = "The connection broke off before the server said that it has your question.";
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [300, 8_000];

// Dispatches "change". `phase` is sending (the picture), asking, waiting (for the first word), streaming or broken, and in the end done, failed or
// stopped (before its first word; what is stopped later is done).
export class Answer extends EventTarget {
  phase = "asking";
  text = "";
  reply = null; // of done
  error = null; // of failed
  isStopping = false;
  #hangUp = null; // ends the request that asked
  #index = -1; // of the event taken last
  #numBreaks = 0; // since then
  #leaving = new AbortController();
  #wake = () => {};

  constructor({ sessionId, question, model = null, picture = null, imageId = null, streamId = null }) {
    super();
    Object.assign(this, { sessionId, question, model, picture, imageId, streamId });
  }

  get hasEnded() {
    return ["done", "failed", "stopped"].includes(this.phase);
  }

  // Asks, or goes on with a stream from its beginning. Never throws.
  async run() {
    try {
      if (!this.streamId) await this.#ask();
      await this.#follow();
    } catch (error) {
      this.error = error;
      this.#enter(error.name === "AbortError" ? "stopped" : "failed");
    }
  }

  // Throws a ServerError when the server cannot be told; the answer goes on then.
  async stop() {
    if (this.hasEnded || this.isStopping) return;
    this.isStopping = true;
    this.#changed();
    if (!this.streamId) return this.#leaving.abort(); // it has not begun
    try {
      await api.stop(this.streamId);
    } catch (error) {
      this.isStopping = false;
      this.#changed();
      throw error;
    }
  }

  async #ask() {
    if (this.picture) {
      this.#enter("sending");
      this.imageId = await this.#unlessLeft(this.picture.send());
      this.#enter("asking");
    }
    const { question: message, sessionId: session_id, model, imageId: image_id } = this;
    const fields = Object.entries({ message, session_id, model, image_id }).filter(([, value]) => value);
    try {
      const { streamId, hangUp } = await api.ask(Object.fromEntries(fields), this.#leaving.signal);
      this.streamId = streamId;
      this.#hangUp = hangUp;
      this.#changed();
    } catch (error) {
      if (error.code === "unreachable" && navigator.onLine) throw new api.ServerError(UNSURE, { code: "unsure" });
      throw error;
    }
  }

  async #follow() {
    for (;;) {
      try {
        await listen(api.streamAddress(this.streamId, this.#index), (event) => this.#take(event));
        if (this.hasEnded) return;
        this.#enter("broken");
        await api.checkStream(this.streamId, this.#index);
      } catch (error) {
        if (!error.isPassing) throw error;
      }
      await this.#pause();
    }
  }

  // Returns whether it was the last one.
  #take({ index, name, data }) {
    this.#hangUp?.().catch(() => {}); // broken off already
    this.#hangUp = null;
    if (index !== null) {
      if (index <= this.#index) return false; // sent again
      if (index > this.#index + 1) throw new api.ServerError("A part of the answer is missing."); // asked for again
      [this.#index, this.#numBreaks] = [index, 0];
    }
    if (name === "start") {
      this.#enter("waiting");
    } else if (name === "chunk") {
      this.text += data.text;
      this.#enter("streaming");
    } else if (name === "done") {
      this.reply = data;
      this.#enter(data.finish_reason === "cancelled" && !this.text ? "stopped" : "done");
    } else if (name === "error") {
      this.error = api.fromBody(data.error);
      this.#enter("failed");
    }
    return this.hasEnded;
  }

  // However long it takes: the reader can stop, and the server says when it has forgotten the answer.
  async #pause() {
    this.#enter("broken");
    const ms = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.#numBreaks++) * (0.5 + Math.random() / 2);
    await new Promise((resolve) => {
      this.#wake = resolve;
      addEventListener("online", resolve, { once: true });
      setTimeout(resolve, ms);
    });
    removeEventListener("online", this.#wake);
  }

  // What is awaited, or an AbortError as soon as the question is given up.
  #unlessLeft(awaited) {
    const { signal } = this.#leaving;
    return Promise.race([
      awaited,
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true })),
    ]);
  }

  #enter(phase) {
    this.phase = phase;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
