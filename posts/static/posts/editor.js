// The Markdown editor of the admin: marks, pictures, preview, and a draft that keeps itself. Without this script the
// page is a plain form.
import { keepDraft } from "./editor-draft.js";
import { offerMarks } from "./editor-marks.js";
import { takePictures } from "./editor-pictures.js";
import { showPreview } from "./editor-preview.js";

const TEXTS = ["title", "subtitle", "body", "excerpt", "meta_description", "cover_alt"];

function start(editor) {
  const area = editor.querySelector("textarea");
  const form = area.form;
  const fields = editor.dataset.kind === "post" ? TEXTS.map((name) => form.elements[name]).filter(Boolean) : [];
  const typed = () => (fields.length ? Object.fromEntries(fields.map((field) => [field.name, field.value])) : { body: area.value });
  const token = () => form.elements.csrfmiddlewaretoken.value;
  const draft = form.querySelector("[data-draft]");
  const identity = () => draft?.dataset.pk ?? "";

  offerMarks(editor, area);
  takePictures(editor, area, token);
  showPreview(editor, fields.length ? fields : [area], () => ({ ...typed(), pk: identity() }), token);
  if (draft && fields.length) keepDraft(editor, draft, form, fields, typed, token);
}

async function copy(place) {
  const [link, button] = [place.querySelector("input"), place.querySelector("[data-do=copy]")];
  button.hidden = false;
  button.addEventListener("click", async () => {
    link.select();
    try {
      await navigator.clipboard.writeText(link.value);
    } catch {
      document.execCommand("copy"); // where the page has no right to the clipboard, as over plain http
    }
    place.querySelector("[data-part=copied]").textContent = button.dataset.done;
  });
}

document.querySelectorAll("[data-editor]").forEach(start);
document.querySelectorAll("[data-copy]").forEach(copy);
