// The chat page: opens the chat that the address names, asks questions in it, and says how they go.
import * as address from "./address.js";
import { Answer } from "./answer.js";
import { deleteHistory, listModels, readHistory } from "./api.js";
import * as chatList from "./chat_list.js";
import * as composer from "./composer.js";
import * as conversation from "./conversation.js";
import { byId } from "./elements.js";
import { forgetNotes, rememberNote } from "./notes.js";
import { Picture } from "./picture.js";
import * as shortcuts from "./shortcuts.js";
import * as underWay from "./under_way.js";
import { noteOf } from "./words.js";

const model = byId("model");
const answers = new Map(); // by chat: those under way, and those that failed while another chat was open
let openId = null; // of the chat that is shown; null: a new one
let wishedModel = ""; // chosen by the reader since the chat was opened; a chat goes on with its own model otherwise
let usualModel = "";
let numOpened = 0;

const STATUS = {
  sending: "Sending the picture…",
  asking: "Asking…",
  waiting: "Thinking…",
  streaming: "",
  broken: "The connection broke off. Trying to go on…",
};

// ------------------------------------------------------------------------------- opening a chat

async function open(sessionId) {
  const number = ++numOpened;
  openId = sessionId;
  conversation.clear();
  composer.clearProblem();
  composer.say("");
  chatList.mark(sessionId);
  wishedModel = "";
  showModel();
  showRunning();
  const reply = await readOrNull(sessionId);
  if (number !== numOpened) return;
  if (reply) conversation.showHistory(reply);
  const answer = answers.get(sessionId) ?? recall(sessionId, reply);
  if (answer) reattach(answer);
  conversation.showWelcome();
}

async function readOrNull(sessionId) {
  if (!sessionId) return null;
  try {
    return await readHistory(sessionId);
  } catch (error) {
    const isNew = answers.has(sessionId) || underWay.recall(sessionId);
    if (openId === sessionId && !(error.status === 404 && isNew)) {
      composer.showProblem(error, error.isPassing ? () => open(sessionId) : null);
    }
    return null;
  }
}

// A question that was under way when the page was left; null if there is none, or the history has its answer.
function recall(sessionId, reply) {
  const asked = underWay.recall(sessionId);
  if (!asked) return null;
  if (asked.streamId) {
    const answer = new Answer(asked);
    track(answer);
    answer.run();
    return answer;
  }
  underWay.forget(sessionId);
  if (!isIn(reply, asked.question)) {
    composer.putBack(asked.question, asked.imageId ? Picture.stored(asked.imageId) : null);
    composer.say("Your question may not have been asked: it is back in its box.");
  }
  return null;
}

function isIn(reply, question) {
  const last = reply?.history.findLast(({ role }) => role === "user");
  return last?.content.some(({ type, text }) => type === "text" && text === question) ?? false;
}

const numQuestions = (reply) => reply.history.filter(({ role }) => role === "user").length;

// ------------------------------------------------------------------------------- asking

function ask(question, picture) {
  const sessionId = openId ?? address.newSessionId();
  const answer = new Answer({ sessionId, question, picture, model: openId && !wishedModel ? null : model.value });
  track(answer);
  if (!openId) {
    address.becomes(sessionId);
    openId = sessionId;
    chatList.mark(sessionId);
  }
  attach(answer, picture?.address ?? "");
  answer.run();
}

// Of a question that was asked when another chat was open, or before the page was loaded: the history decides what of it
// is kept.
function reattach(answer) {
  const picture = answer.picture ?? (answer.imageId ? Picture.stored(answer.imageId) : null);
  attach(answer, picture?.address ?? "", { isReopened: true });
}

// What becomes of it, whichever chat is open. What failed waits until its own chat is opened again.
function track(answer) {
  answers.set(answer.sessionId, answer);
  answer.addEventListener("change", () => {
    if (!answer.hasEnded) {
      if (answer.phase !== "streaming") underWay.remember(answer); // a piece more changes nothing of it
      return;
    }
    underWay.forget(answer.sessionId);
    if (answer.phase === "done") {
      answers.delete(answer.sessionId);
      rememberNote(answer.sessionId, answer.text, noteOf(answer.reply));
    }
    refreshList();
  });
}

function attach(answer, pictureAddress, { isReopened = false } = {}) {
  const number = numOpened;
  const view = conversation.begin(answer, pictureAddress);
  const update = () => {
    if (number !== numOpened) return answer.removeEventListener("change", update); // another chat is open now
    view.grow();
    showRunning();
    if (!answer.hasEnded) return composer.say(answer.isStopping ? "Stopping…" : STATUS[answer.phase]);
    answer.removeEventListener("change", update);
    composer.say("");
    if (answer.phase === "done") keep(answer, view, isReopened);
    else giveUp(answer, view, isReopened);
  };
  answer.addEventListener("change", update);
  update();
}

async function keep(answer, view, isReopened) {
  model.value = answer.reply.model_used;
  wishedModel = "";
  if (!isReopened) return view.keep();
  const number = numOpened;
  const reply = await readHistory(answer.sessionId).catch(() => null);
  if (number !== numOpened) return;
  if (!reply) return view.keep();
  view.remove();
  conversation.showHistory(reply);
}

// The chat is as it was: the question goes back to its box.
async function giveUp(answer, view, isReopened) {
  answers.delete(answer.sessionId);
  view.remove();
  const { sessionId, question, picture, imageId, error } = answer;
  if (isReopened && error?.code === "stream_not_found" && isIn(await readOrNull(sessionId), question)) return;
  composer.putBack(question, picture ?? (imageId ? Picture.stored(imageId) : null));
  if (answer.phase === "stopped") composer.say("Stopped. Your question is back in its box.");
  else if (error.code === "unsure") composer.showProblem(error, () => askUnlessAnswered(answer));
  else composer.showProblem(error, error.isPassing ? composer.submit : null);
}

// A question that the server may have got.
async function askUnlessAnswered(answer) {
  const { sessionId, question } = answer;
  let reply = null;
  try {
    reply = await readHistory(sessionId);
  } catch (error) {
    if (error.status !== 404) return composer.showProblem(error, () => askUnlessAnswered(answer));
  }
  if (openId !== sessionId) return;
  const isAnswered = isIn(reply, question) && numQuestions(reply) > conversation.numQuestions();
  if (!isAnswered || !composer.takeBack(question)) return composer.submit();
  conversation.clear();
  conversation.showHistory(reply);
  conversation.showWelcome();
}

async function stop() {
  try {
    await answers.get(openId)?.stop();
  } catch (error) {
    composer.showProblem(error, stop);
  }
}

function showRunning() {
  const answer = answers.get(openId);
  composer.showRunning(Boolean(answer && !answer.hasEnded));
}

// ------------------------------------------------------------------------------- chats and models

async function refreshList() {
  await chatList.refresh().catch(() => {}); // the next one may succeed; what matters was said already
  showModel();
}

async function remove(sessionId) {
  try {
    await answers.get(sessionId)?.stop();
    await deleteHistory(sessionId);
  } catch (error) {
    if (error.status !== 404) return composer.showProblem(error);
  }
  answers.delete(sessionId);
  underWay.forget(sessionId);
  forgetNotes(sessionId);
  if (sessionId === openId) newChat();
  else byId("question").focus();
  await refreshList();
}

function newChat() {
  chatList.close();
  address.goTo(null);
  composer.focusQuestion();
}

// The chat's own model, unless the reader has chosen another one.
function showModel() {
  const names = [...model.options].map(({ value }) => value);
  const own = openId ? chatList.find(openId)?.model : usualModel;
  if (!wishedModel && names.includes(own)) model.value = own;
}

async function loadModels() {
  const { names, usual } = await listModels();
  model.replaceChildren(...names.map((name) => new Option(name, name)));
  usualModel = usual;
  model.hidden = names.length < 2;
  showModel();
}

model.addEventListener("change", () => {
  wishedModel = model.value;
  composer.focusQuestion();
});
for (const id of ["new", "again"]) byId(id).addEventListener("click", newChat);
composer.listen({ ask, stop });
chatList.listen({ remove });
shortcuts.listen({ newChat, stop });
address.onChat(open);
addEventListener("focus", refreshList); // another tab may have asked
loadModels().catch((error) => composer.showProblem(error, loadModels));
refreshList();
open(address.openChat());
