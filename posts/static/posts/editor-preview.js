// Show beside the text what readers will see. The server renders it as it renders the site and the mail; the frame
// that shows it runs no script.
const PAUSE = 400;
const WIDTHS = { web: { narrow: 390, wide: 1100 }, mail: { narrow: 390, wide: 720 } };

// Choose the colours by the document's own rules, as a reader's system would.
function colour(frame, scheme) {
  for (const sheet of frame.contentDocument.styleSheets) {
    for (const rule of sheet.cssRules) {
      if (!(rule instanceof frame.contentWindow.CSSMediaRule)) continue;
      rule.asked ??= rule.media.mediaText;
      const wants = /prefers-color-scheme:\s*(light|dark)/.exec(rule.asked)?.[1];
      if (wants) rule.media.mediaText = wants === scheme ? "all" : "not all";
    }
  }
  frame.style.colorScheme = scheme;
  frame.contentDocument.documentElement.style.colorScheme = scheme;
}

// Put a new text into the page that is shown, so that the place scrolled to stays; begin anew where the page is another.
function put(frame, html, page, ready) {
  const shown = frame.contentDocument;
  if (frame.dataset.page === page && shown?.body) {
    const next = new DOMParser().parseFromString(html, "text/html");
    shown.body.replaceWith(shown.adoptNode(next.body));
  } else {
    frame.dataset.page = page;
    frame.addEventListener("load", ready, { once: true });
    frame.srcdoc = html;
  }
}

export function showPreview(editor, fields, typed, token) {
  const part = (name) => editor.querySelector(`[data-part=${name}]`);
  const frame = part("frame");
  const chosen = { view: "web", width: "narrow", scheme: document.documentElement.classList.contains("dark") ? "dark" : "light" };
  const pages = {};
  const lost = part("words-for-code").dataset.lost;
  let asking = new AbortController();
  let timer = 0;

  const fit = () => {
    const [stage, width] = [part("stage"), WIDTHS[chosen.view][chosen.width]];
    const scale = Math.min(1, stage.clientWidth / width);
    const wide = scale < 1 || chosen.width === "narrow" ? width : stage.clientWidth;
    frame.style.width = `${wide}px`;
    frame.style.height = `${stage.clientHeight / scale}px`;
    frame.style.transform = `scale(${scale})`;
  };
  const show = () => {
    for (const button of editor.querySelectorAll(".editor-views button")) {
      const [[name, value]] = Object.entries(button.dataset);
      button.setAttribute("aria-pressed", String(chosen[name] === value));
    }
    fit();
    if (pages[chosen.view]) put(frame, pages[chosen.view], chosen.view, () => colour(frame, chosen.scheme));
  };

  const ask = async (view, url, signal) => {
    const body = new FormData();
    body.append("csrfmiddlewaretoken", token());
    body.append("kind", editor.dataset.kind);
    for (const [name, text] of Object.entries(typed())) body.append(name, text);
    const answer = await fetch(url, { method: "POST", body, redirect: "error", signal });
    const told = await answer.json();
    for (const name of ["words", "minutes", "kilobytes", "warning"]) {
      if (name in told && part(name)) part(name).textContent = told[name];
    }
    if (told.html) pages[view] = told.html;
    return told.error ?? "";
  };
  const update = async () => {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    const urls = Object.entries({ web: editor.dataset.preview, mail: editor.dataset.mail }).filter(([, url]) => url);
    const asked = await Promise.all(urls.map(([view, url]) => ask(view, url, signal).catch(() => lost)));
    if (signal.aborted) return;
    const problem = asked.find(Boolean) ?? "";
    if (part("problem").textContent !== problem) part("problem").textContent = problem;
    part("problem").hidden = !problem;
    show();
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(update, PAUSE);
  };

  part("look").hidden = part("figures").hidden = false;
  for (const field of fields) field.addEventListener("input", soon);
  editor.querySelector(".editor-views").addEventListener("click", (event) => {
    const [choice] = Object.entries(event.target.closest("button")?.dataset ?? {});
    if (!choice) return;
    chosen[choice[0]] = choice[1];
    show();
    if (choice[0] === "scheme" && frame.contentDocument?.body) colour(frame, chosen.scheme);
  });
  new ResizeObserver(fit).observe(part("stage"));
  show();
  update();
}
