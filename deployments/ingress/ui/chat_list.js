// The list of chats: titles that lead to them, and deletion after a question whether it is meant.
import { addressOf, goTo } from "./address.js";
import { listSessions } from "./api.js";
import { byId, make, makeButton } from "./elements.js";
import { timeOf } from "./words.js";

const SHORT_LIST = 50;
const [chats, list, more, deletion] = ["chats", "list", "more", "deletion"].map(byId);
let sessions = [];
let isShort = true;
let openId = null;
let onDelete = () => {};
let doomed = null;

export const find = (sessionId) => sessions.find((one) => one.session_id === sessionId);

export function listen({ remove }) {
  onDelete = remove;
}

export async function refresh() {
  const reply = await listSessions(isShort ? SHORT_LIST : null);
  sessions = reply.sessions;
  more.hidden = !(isShort && reply.has_more);
  draw();
}

export function mark(sessionId) {
  openId = sessionId;
  draw();
}

function draw() {
  const open = find(openId);
  document.title = open ? `${titleOf(open)} · Retina` : "Retina";
  byId("nochats").hidden = sessions.length > 0;
  const active = document.activeElement?.dataset.key;
  list.replaceChildren(...sessions.map(makeRow));
  if (active) [...list.querySelectorAll("[data-key]")].find((one) => one.dataset.key === active)?.focus();
}

function makeRow(session) {
  const { session_id: id, updated, has_image: hasImage } = session;
  const title = titleOf(session);
  const link = make("a", "", make("span", "title", title), make("span", "note", noteOf(updated, hasImage)));
  link.href = addressOf(id);
  link.dataset.key = `open ${id}`;
  if (id === openId) link.setAttribute("aria-current", "page");
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab of its own
    event.preventDefault();
    close();
    goTo(id);
  });
  const remove = makeButton("×", () => confirmDeletion(session), "small quiet");
  remove.setAttribute("aria-label", `Delete “${title}”`);
  remove.dataset.key = `delete ${id}`;
  return make("li", "", link, remove);
}

const titleOf = ({ title }) => title || "Untitled";
const noteOf = (updated, hasImage) => timeOf(updated) + (hasImage ? " · with a picture" : "");

function confirmDeletion(session) {
  doomed = session;
  byId("doomed").textContent = titleOf(session);
  deletion.showModal();
}

export function close() {
  if (chats.matches(":popover-open")) chats.hidePopover();
}

more.addEventListener("click", () => {
  isShort = false;
  refresh().catch(() => (isShort = true));
});
byId("keep").addEventListener("click", () => deletion.close());
byId("delete").addEventListener("click", () => {
  deletion.close();
  onDelete(doomed.session_id);
});
