// Values that outlive a reload. Where the browser does not let pages store anything, they live as long as the page.

const instead = new Map();

export function load(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return instead.get(key) ?? null;
  }
}

export function save(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    instead.set(key, value);
  }
}
