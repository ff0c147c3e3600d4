// Keep the page of an issue that is under way up to date. Without this script a reload does the same.
const LEAST = 2000;
const MOST = 60000;
const TIMES_AS_LONG = 10; // as the last answer took: counting a million rows costs the database something

const panel = document.querySelector("[data-counts]");
const numbers = new Intl.NumberFormat(document.documentElement.lang);
const shown = new Map();

function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function replace(part, html) {
  if (shown.get(part) === html) return;
  shown.set(part, html);
  const focused = part.contains(document.activeElement) && document.activeElement.outerHTML;
  part.innerHTML = html;
  if (focused) [...part.querySelectorAll("a, button")].find((element) => element.outerHTML === focused)?.focus();
}

function show(answer) {
  for (const place of panel.querySelectorAll("[data-count]")) {
    write(place, numbers.format(answer[place.dataset.count]));
  }
  for (const place of panel.querySelectorAll("[data-show]")) write(place, String(answer[place.dataset.show]));
  for (const bar of panel.querySelectorAll("[data-bar]")) bar.style.flexGrow = answer[bar.dataset.bar];
  for (const part of panel.querySelectorAll("[data-part]")) replace(part, answer.parts[part.dataset.part]);
}

async function ask() {
  const headers = { Accept: "application/json" };
  const answer = await fetch(panel.dataset.counts, { headers, redirect: "error", cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

function rest(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

async function untilSeen() {
  while (document.hidden) {
    await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}

async function follow() {
  for (let wait = LEAST, live = Boolean(panel?.dataset.live); live; ) {
    await rest(wait);
    await untilSeen();
    const began = performance.now();
    try {
      const answer = await ask();
      show(answer);
      live = answer.live;
      wait = Math.max(LEAST, TIMES_AS_LONG * (performance.now() - began));
    } catch {
      write(panel.querySelector("[data-show=at]"), panel.dataset.lost);
      wait = Math.min(2 * wait, MOST);
    }
  }
}

follow();
