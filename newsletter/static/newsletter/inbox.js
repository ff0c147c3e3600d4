// Show subject and preheader as an inbox does while they are typed, and where each is cut off.
const HOLE = /\{\{\s*name\s*(?:\|\s*([^{}|\r\n]{0,60}?)\s*)?\}\}/g;
const LONGEST_TAIL = 18;

const inbox = document.querySelector(".issue-inbox");
const fields = { subject: document.getElementById("id_subject"), preheader: document.getElementById("id_preheader") };
const canvas = document.createElement("canvas").getContext("2d");

// What a reader without a name gets.
function asRead(text) {
  return text.replace(HOLE, (_hole, fallback) => fallback ?? "").replace(/\s+/g, " ").trim();
}

function seen(text, place, width) {
  canvas.font = getComputedStyle(place).font;
  const letters = Array.from(text);
  let low = 0;
  for (let high = letters.length; low < high; ) {
    const middle = Math.ceil((low + high) / 2);
    if (canvas.measureText(letters.slice(0, middle).join("")).width <= width) low = middle;
    else high = middle - 1;
  }
  return low < letters.length ? letters.slice(0, low).join("") : null;
}

function note(name, place, text) {
  const cut = seen(text, place, place.clientWidth);
  const words = cut === null ? inbox.dataset.all : inbox.dataset.cut.replace("%s", cut.slice(-LONGEST_TAIL).trim());
  inbox.querySelector(`[data-cut-note=${name}]`).textContent = words;
}

function show() {
  const [subject, preheader] = [fields.subject, fields.preheader].map((field) => asRead(field.value));
  for (const place of inbox.querySelectorAll("[data-inbox=subject]")) {
    place.textContent = subject || inbox.dataset.noSubject;
  }
  for (const place of inbox.querySelectorAll("[data-inbox=preheader]")) place.textContent = preheader;
  note("phone", inbox.querySelector(".inbox-phone [data-inbox=subject]"), subject);
  note("desk", inbox.querySelector(".inbox-line"), `${subject} ${preheader}`.trim());
}

if (inbox && fields.subject && fields.preheader) {
  for (const field of Object.values(fields)) field.addEventListener("input", show);
  new ResizeObserver(show).observe(inbox);
  show();
}
