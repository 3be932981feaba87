// Puts the chosen colours on the page before it is painted; a plain script, because modules run after that.
"use strict";

try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("retina.theme")) ?? "";
} catch {
  document.documentElement.dataset.theme = ""; // this browser stores nothing for pages
}
