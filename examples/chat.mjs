// Chat about a picture with JavaScript's fetch, streamed: node examples/chat.mjs PICTURE
// Node 18 or newer, nothing to install. RETINA_URL says where the service is; http://127.0.0.1:8000 otherwise.
import { readFile } from "node:fs/promises";
import { basename } from "node:path";

const url = process.env.RETINA_URL ?? "http://127.0.0.1:8000";
const picture = process.argv[2];
if (!picture) {
  console.error("usage: node examples/chat.mjs PICTURE");
  process.exit(2);
}

/** Events of a server-sent stream as { event, id, data }, data parsed. */
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      if (fields.data) yield { event: fields.event, id: fields.id, data: JSON.parse(fields.data) };
    }
  }
}

/** Ask, write the answer as it comes, and return the `done` event's body. */
async function ask(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries({ stream: "true", ...fields })) {
    if (value instanceof Blob) body.set(name, value, basename(picture));
    else body.set(name, value);
  }
  const response = await fetch(`${url}/chat`, { method: "POST", body });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const { event, data } of readEvents(response)) {
    if (event === "chunk") process.stdout.write(data.text);
    if (event === "error") throw new Error(data.error.message);
    if (event === "done") {
      process.stdout.write("\n");
      return data;
    }
  }
  throw new Error("the stream ended before the answer was whole");
}

const first = await ask({ message: "What do you see in this image?", image: new Blob([await readFile(picture)]) });
await ask({ message: "How many shapes are there?", session_id: first.session_id });
