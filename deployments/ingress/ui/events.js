// The server-sent events of a response, as they come. EventSource would do but for the first request, which is a POST.
import { createParser } from "./vendor/eventsource-parser.js";

// Yields {index, name, data}. `index` counts the events of one stream; its id is "<stream id>.<index>".
export async function* eventsOf(response) {
  const ready = [];
  const parser = createParser({
    onEvent: ({ id, event, data }) => ready.push({ index: indexOf(id), name: event, data: JSON.parse(data) }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      parser.feed(value);
      yield* ready.splice(0);
    }
  } finally {
    reader.cancel().catch(() => {}); // of a broken connection: it is closed already
  }
}

function indexOf(id) {
  const index = Number(id?.slice(id.lastIndexOf(".") + 1));
  return Number.isInteger(index) ? index : null;
}
