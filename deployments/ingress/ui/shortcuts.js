// The keyboard, and the choice of colours: what the help on the page lists.
import { byId } from "./elements.js";
import { save } from "./storage.js";

const [chats, help, theme] = ["chats", "help", "theme"].map(byId);

export function listen({ newChat, stop }) {
  const keys = {
    KeyN: newChat,
    KeyQ: () => byId("question").focus(),
    KeyP: () => byId("choose").click(),
    KeyC: showChats,
    KeyK: () => help.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && !chats.matches(":popover-open")) return stop();
    // By its place on the keyboard: with Alt some systems write other signs.
    if (!event.altKey || event.ctrlKey || event.metaKey || !(event.code in keys)) return;
    event.preventDefault();
    keys[event.code]();
  });
}

function showChats() {
  if (getComputedStyle(byId("menu")).display !== "none") chats.showPopover();
  (chats.querySelector("[aria-current]") ?? byId("new")).focus();
}

byId("keys").addEventListener("click", () => help.showModal());
byId("close").addEventListener("click", () => help.close());
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is for chats
  byId("question").focus();
});
theme.value = document.documentElement.dataset.theme;
theme.addEventListener("change", () => {
  document.documentElement.dataset.theme = theme.value;
  save("retina.theme", theme.value);
});
