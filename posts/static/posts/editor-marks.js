// Put Markdown's marks around what is selected, by buttons and by keys. Tab is left alone: it leads on (WCAG 2.1.2).
const KEYS = { b: "bold", i: "italic", k: "link", e: "code", "]": "indent", "[": "outdent" };
const STEP = "  ";
const ADDRESS = /^(https?:\/\/|mailto:|\/)\S*$/;

// Type `text` in place of what is selected, so that Undo takes it back like any typing.
export function type(area, text) {
  area.focus();
  if (text === "" ? document.execCommand("delete") : document.execCommand("insertText", false, text)) return;
  area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
  area.dispatchEvent(new Event("input", { bubbles: true }));
}

function selected(area) {
  return area.value.slice(area.selectionStart, area.selectionEnd);
}

function around(area, before, after = before) {
  const [start, end] = [area.selectionStart, area.selectionEnd];
  const has = area.value.slice(start - before.length, start) === before && area.value.slice(end, end + after.length) === after;
  const words = area.value.slice(start, end);
  if (has) {
    area.setSelectionRange(start - before.length, end + after.length);
    type(area, words);
    area.setSelectionRange(start - before.length, end - before.length);
  } else {
    type(area, before + words + after);
    area.setSelectionRange(start + before.length, end + before.length);
  }
}

function code(area) {
  if (!selected(area).includes("\n")) return around(area, "`");
  const lead = area.selectionStart > 0 && area.value[area.selectionStart - 1] !== "\n" ? "\n" : "";
  return around(area, `${lead}\`\`\`\n`, "\n```");
}

function link(area, word) {
  const [start, words] = [area.selectionStart, selected(area)];
  if (ADDRESS.test(words)) {
    type(area, `[${word}](${words})`);
    area.setSelectionRange(start + 1, start + 1 + word.length);
  } else {
    type(area, `[${words || word}](https://)`);
    const address = start + (words || word).length + 3;
    area.setSelectionRange(address, address + "https://".length);
  }
}

function shift(area, change) {
  const start = area.value.lastIndexOf("\n", area.selectionStart - 1) + 1;
  const last = area.value.indexOf("\n", Math.max(area.selectionStart, area.selectionEnd - 1));
  const end = last < 0 ? area.value.length : last;
  const caret = area.selectionEnd - area.value.length;
  const lines = area.value.slice(start, end).split("\n");
  const several = lines.length > 1;
  const moved = lines.map(change).join("\n");
  if (moved === lines.join("\n")) return;
  area.setSelectionRange(start, end);
  type(area, moved);
  const place = Math.max(start, area.value.length + caret);
  area.setSelectionRange(several ? start : place, several ? start + moved.length : place);
}

export function offerMarks(editor, area) {
  const tools = editor.querySelector("[data-part=tools]");
  const snippet = tools.querySelector("[data-part=snippet]");
  const word = editor.querySelector("[data-part=words-for-code]").dataset.link;
  const marks = {
    bold: () => around(area, "**"),
    italic: () => around(area, "*"),
    code: () => code(area),
    link: () => link(area, word),
    indent: () => shift(area, (line) => STEP + line),
    outdent: () => shift(area, (line) => line.replace(/^( {1,2}|\t)/, "")),
    snippet: () => {
      if (snippet.value) type(area, snippet.value);
      snippet.value = "";
    },
  };
  tools.hidden = false;
  tools.addEventListener("click", (event) => marks[event.target.closest("button")?.dataset.do]?.());
  area.addEventListener("keydown", (event) => {
    const mark = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && marks[KEYS[event.key.toLowerCase()]];
    if (!mark) return;
    event.preventDefault();
    mark();
  });
}
