// Which chat is open, as the part of the address behind #: it outlives a reload, and back and forward work.

const KEY = "chat";

export function openChat() {
  return new URLSearchParams(location.hash.slice(1)).get(KEY);
}

export function addressOf(sessionId) {
  return sessionId ? `#${new URLSearchParams({ [KEY]: sessionId })}` : location.pathname + location.search;
}

// A step of its own in the browser's history.
export function goTo(sessionId) {
  if (openChat() === sessionId) return;
  history.pushState(null, "", addressOf(sessionId));
  dispatchEvent(new Event("chatchange"));
}

// The new chat has become this one: the same step.
export function becomes(sessionId) {
  history.replaceState(null, "", addressOf(sessionId));
}

export function onChat(listener) {
  for (const name of ["popstate", "chatchange"]) addEventListener(name, () => listener(openChat()));
}

// As long as the server's own: 128 bits. crypto.randomUUID is missing where the page is not served over HTTPS.
export function newSessionId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
