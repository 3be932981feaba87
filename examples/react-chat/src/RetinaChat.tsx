// A chat about pictures: <RetinaChat url="http://127.0.0.1:8000" />
import { type FormEvent, useEffect, useId, useRef, useState } from "react";
import { ask, listModels, stop } from "./retina";

interface Turn {
  question: string;
  picture?: string | undefined; // an object URL
  answer: string;
  note: string; // tokens, or what went wrong
}

export function RetinaChat({ url }: { url: string }) {
  const [models, setModels] = useState<string[]>([]);
  const [model, setModel] = useState<string>();
  const [turns, setTurns] = useState<Turn[]>([]);
  const [message, setMessage] = useState("");
  const [picture, setPicture] = useState<File>();
  const [streamId, setStreamId] = useState<string>();
  const [isBusy, setIsBusy] = useState(false);
  const sessionId = useRef<string>(undefined);
  const fileInput = useRef<HTMLInputElement>(null);
  const ids = useId();

  useEffect(() => {
    listModels(url).then(setModels, (error: Error) => setTurns([{ question: "", answer: "", note: error.message }]));
  }, [url]);

  const changeLast = (change: (turn: Turn) => Turn) =>
    setTurns((all) => all.map((turn, index) => (index === all.length - 1 ? change(turn) : turn)));

  async function submit(event: FormEvent) {
    event.preventDefault();
    setIsBusy(true);
    const shown = picture && URL.createObjectURL(picture);
    setTurns((all) => [...all, { question: message, picture: shown, answer: "", note: "" }]);
    try {
      const question = { message, image: picture, sessionId: sessionId.current, model };
      for await (const { event, data } of ask(url, question)) {
        if (event === "start") {
          sessionId.current = data.session_id;
          setStreamId(data.stream_id);
        } else if (event === "chunk") {
          changeLast((turn) => ({ ...turn, answer: turn.answer + data.text }));
        } else if (event === "done") {
          changeLast((turn) => ({ ...turn, note: `${data.model_used}, ${data.usage.completion_tokens} tokens` }));
          setMessage("");
          setPicture(undefined);
          if (fileInput.current) fileInput.current.value = "";
        } else {
          changeLast((turn) => ({ ...turn, note: data.error.message }));
        }
      }
    } catch (error) {
      changeLast((turn) => ({ ...turn, note: error instanceof Error ? error.message : String(error) }));
    } finally {
      setStreamId(undefined);
      setIsBusy(false);
    }
  }

  return (
    <section aria-label="Chat">
      <ol aria-live="polite">
        {turns.map((turn, index) => (
          <li key={index}>
            {turn.picture && <img src={turn.picture} alt="The picture asked about" width={160} />}
            <p>{turn.question}</p>
            <p data-answer>{turn.answer}</p>
            <small>{turn.note}</small>
          </li>
        ))}
      </ol>
      <form onSubmit={submit}>
        <label htmlFor={`${ids}-model`}>Model</label>
        <select id={`${ids}-model`} value={model ?? ""} onChange={(event) => setModel(event.target.value || undefined)}>
          <option value="">default</option>
          {models.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
        <label htmlFor={`${ids}-picture`}>Picture</label>
        <input
          id={`${ids}-picture`}
          ref={fileInput}
          type="file"
          accept="image/*"
          onChange={(event) => setPicture(event.target.files?.[0])}
        />
        <label htmlFor={`${ids}-message`}>Question</label>
        <input id={`${ids}-message`} value={message} onChange={(event) => setMessage(event.target.value)} required />
        <button disabled={isBusy}>Ask</button>
        {streamId && (
          <button type="button" onClick={() => void stop(url, streamId)}>
            Stop
          </button>
        )}
      </form>
    </section>
  );
}
