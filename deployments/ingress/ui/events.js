// The events of a stream that the server keeps, read by the browser's own EventSource.

const NAMES = ["start", "chunk", "done", "error"];

// Gives each event {index, name, data} to `take`, until that returns true or throws, or the connection breaks. `index`
// counts the events of one stream; null where an event is none of the stream's own.
export function listen(address, take) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(address);
    const leave = (settle, value) => {
      source.close(); // it would come back by itself, but neither say so nor say why it cannot
      settle(value);
    };
    const heed = (event) => {
      if (!(event instanceof MessageEvent)) return leave(resolve); // the browser's own error event
      try {
        if (take({ index: indexOf(event), name: event.type, data: JSON.parse(event.data) })) leave(resolve);
      } catch (error) {
        leave(reject, error);
      }
    };
    for (const name of NAMES) source.addEventListener(name, heed);
  });
}

// Ids are "<stream id>.<index>". An event without one repeats the id of the one before: such are errors only.
function indexOf({ type, lastEventId: id }) {
  const index = Number(id.slice(id.lastIndexOf(".") + 1));
  return type !== "error" && Number.isInteger(index) ? index : null;
}
