// Answers as markup, which our own server makes of them. The only place where a string becomes markup.
import { renderMarkdown } from "./api.js";

const [MAX_TEXTS, MAX_CHARS] = [100, 64_000]; // of one request, as the server has them

// The one policy that the page may have: other scripts cannot make any, and none can be made of other strings.
const asIs = { createHTML: (html) => html };
const policy = globalThis.trustedTypes?.createPolicy("retina-markdown", asIs) ?? asIs;

// For each text its markup, or null where it has to be shown as it is. Never throws.
export async function toFragments(texts) {
  const found = await Promise.all(inParts(texts).map(render));
  return found.flat();
}

// JavaScript counts what the server counts as one character as one or two.
function inParts(texts) {
  const parts = [];
  let room = 0;
  for (const text of texts) {
    if (!parts.length || text.length > room || parts.at(-1).length === MAX_TEXTS) {
      parts.push([]);
      room = MAX_CHARS;
    }
    parts.at(-1).push(text);
    room -= text.length;
  }
  return parts;
}

async function render(texts) {
  if (texts[0].length > MAX_CHARS) return texts.map(() => null); // alone in its part
  const html = await renderMarkdown(texts).catch(() => texts.map(() => null));
  return html.map((one) => (one === null ? null : toFragment(one)));
}

function toFragment(html) {
  const parsed = new DOMParser().parseFromString(policy.createHTML(html), "text/html");
  const fragment = document.createDocumentFragment();
  fragment.append(...parsed.body.childNodes);
  return fragment;
}
