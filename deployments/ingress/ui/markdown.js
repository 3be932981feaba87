// Answers as markup: Markdown becomes HTML, DOMPurify decides what of it reaches the page. HTML in answers stays text.
import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";

const TAGS = "a blockquote br code del em h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");
const RULES = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "start"],
  ADD_URI_SAFE_ATTR: ["start"], // a number, which is no address
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const SIGNS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (sign) => SIGNS[sign]);

const marked = new Marked({
  gfm: true,
  breaks: true, // models mean their line ends
  renderer: {
    html: ({ text }) => escape(text),
    // A picture from elsewhere would tell its server who reads this: it is a link.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    heading({ tokens, depth }) {
      const tag = `h${Math.min(depth + 2, 6)}`; // the page itself has the first two
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A" && node.hasAttribute("href")) Object.assign(node, { target: "_blank", rel: "noopener noreferrer" });
  if (node.nodeName === "PRE") node.tabIndex = 0; // it scrolls sideways, by keys as well
});

export function toFragment(text) {
  return DOMPurify.sanitize(marked.parse(text), RULES);
}
