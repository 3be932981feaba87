// A picture that goes with a question: shown at once, and sent ahead of the question, so that a bad one shows at once too.
import { pictureAddress, upload } from "./api.js";

export class Picture {
  #sending = null; // the promise of its id
  #leaving = new AbortController();

  constructor({ name, address, file = null, id = null }) {
    Object.assign(this, { name, address });
    this.file = file;
    if (id) this.#sending = Promise.resolve(id);
  }

  static fromFile(file) {
    return new Picture({ name: file.name || "pasted picture", address: URL.createObjectURL(file), file });
  }

  // One that the server has.
  static stored(id) {
    return new Picture({ name: "the picture of your question", address: pictureAddress(id), id });
  }

  // Its id. Again after a failure that may pass, it is sent again.
  send() {
    this.#sending ??= upload(this.file, this.#leaving.signal).catch((error) => {
      if (error.isPassing) this.#sending = null;
      throw error;
    });
    return this.#sending;
  }

  // Nobody wants it any more.
  drop() {
    this.#leaving.abort();
    if (this.file) URL.revokeObjectURL(this.address);
  }
}
