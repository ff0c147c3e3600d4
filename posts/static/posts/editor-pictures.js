// Take pictures that are pasted, dropped or chosen: the server decodes and keeps them, the author says what they show.
import { type } from "./editor-marks.js";

function pictures(data) {
  return [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

async function upload(file, url, token, failed) {
  const body = new FormData();
  body.append("csrfmiddlewaretoken", token());
  body.append("image", file, file.name || "picture");
  try {
    const answer = await fetch(url, { method: "POST", body, redirect: "error" });
    const told = await answer.json();
    return answer.ok ? { url: told.url } : { refusal: told.image.join(" ") };
  } catch {
    return { refusal: failed };
  }
}

function described(alt) {
  return alt.trim().replace(/\s+/g, " ").replace(/[\\[\]]/g, "\\$&");
}

// Ask what the picture shows while it is being uploaded; the answer is the Markdown, or "" where it was left out.
function ask(editor, file, token) {
  const dialog = editor.querySelector("template[data-part=picture]").content.firstElementChild.cloneNode(true);
  const part = (name) => dialog.querySelector(`[data-part=${name}]`);
  const words = part("progress").dataset;
  let url = "";

  const check = () => {
    part("alt").disabled = part("bare").checked;
    part("insert").disabled = !url || !(part("bare").checked || part("alt").value.trim());
  };
  part("thumb").src = URL.createObjectURL(file);
  part("progress").textContent = words.wait;
  part("alt").addEventListener("input", check);
  part("bare").addEventListener("change", check);
  part("cancel").addEventListener("click", () => dialog.close(""));
  document.body.append(dialog);
  dialog.showModal();
  part("alt").focus();

  upload(file, editor.dataset.upload, token, words.failed).then((answer) => {
    url = answer.url ?? "";
    part("progress").textContent = url ? words.done : "";
    part("refusal").hidden = Boolean(url);
    part("refusal").textContent = answer.refusal ?? "";
    check();
  });

  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      const alt = part("bare").checked ? "" : described(part("alt").value);
      URL.revokeObjectURL(part("thumb").src);
      dialog.remove();
      done(dialog.returnValue === "insert" ? `![${alt}](${url})` : "");
    });
  });
}

export function takePictures(editor, area, token) {
  const chooser = editor.querySelector("[data-part=file]");
  let turn = Promise.resolve();

  const take = (files) => {
    for (const file of files) {
      turn = turn.then(async () => {
        const place = [area.selectionStart, area.selectionEnd]; // a modal dialog makes the browser forget it
        const markdown = await ask(editor, file, token);
        area.focus();
        area.setSelectionRange(...place);
        if (markdown) type(area, markdown);
      });
    }
  };

  area.addEventListener("paste", (event) => {
    const files = pictures(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  area.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  area.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  editor.querySelector("[data-do=picture]").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    take([...chooser.files]);
    chooser.value = "";
  });
}
