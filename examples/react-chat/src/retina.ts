// Asks a Retina service and reads its answer as it comes; a stream that breaks is gone on with where it stopped.
import { EventSourceParserStream } from "eventsource-parser/stream";

export interface Usage {
  prompt_tokens: number;
  image_tokens: number;
  reused_tokens: number;
  completion_tokens: number;
}

export interface Reply {
  response: string;
  session_id: string;
  model_used: string;
  finish_reason: "stop" | "length" | "cancelled";
  usage: Usage;
}

export type AnswerEvent =
  | { event: "start"; data: { session_id: string; model: string; stream_id: string } }
  | { event: "chunk"; data: { text: string } }
  | { event: "done"; data: Reply }
  | { event: "error"; data: ErrorBody };

interface ErrorBody {
  error: { code: string; message: string };
}

export interface Question {
  message: string;
  image?: Blob | undefined;
  sessionId?: string | undefined;
  model?: string | undefined;
}

const RETRIES = 5;

/** Events of one answer, each once. Throws Error with the service's own words. */
export async function* ask(url: string, question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent> {
  const body = new FormData();
  body.set("message", question.message);
  body.set("stream", "true");
  body.set("resumable", "true");
  if (question.image) body.set("image", question.image);
  if (question.sessionId) body.set("session_id", question.sessionId);
  if (question.model) body.set("model", question.model);

  let response = await send(`${url}/chat`, { method: "POST", body }, signal);
  let lastId = "";
  for (let failures = 0; ; failures++) {
    try {
      for await (const { event, id } of readEvents(response)) {
        lastId = id;
        failures = 0;
        yield event;
        if (event.event === "done" || event.event === "error") return;
      }
      throw new Error("the connection ended before the answer was whole");
    } catch (error) {
      if (signal?.aborted || !lastId || failures >= RETRIES) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** failures));
    const streamId = lastId.slice(0, lastId.lastIndexOf("."));
    response = await send(`${url}/chat/streams/${streamId}`, { headers: { "Last-Event-ID": lastId } }, signal);
  }
}

/** End an answer where it is. */
export async function stop(url: string, streamId: string): Promise<void> {
  await send(`${url}/chat/streams/${streamId}/stop`, { method: "POST" });
}

export async function listModels(url: string): Promise<string[]> {
  const response = await send(`${url}/v1/models`, {});
  const body = (await response.json()) as { data: { id: string }[] };
  return body.data.map((model) => model.id);
}

async function send(url: string, init: RequestInit, signal?: AbortSignal): Promise<Response> {
  const response = await fetch(url, signal ? { ...init, signal } : init);
  if (!response.ok) throw new Error(((await response.json()) as ErrorBody).error.message);
  return response;
}

async function* readEvents(response: Response): AsyncGenerator<{ event: AnswerEvent; id: string }> {
  if (!response.body) throw new Error("the reply has no body");
  const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  const reader = events.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield { event: { event: value.event, data: JSON.parse(value.data) } as AnswerEvent, id: value.id ?? "" };
    }
  } finally {
    await reader.cancel();
  }
}
