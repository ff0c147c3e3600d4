// Keep what is typed: a draft on the server, what readers see already in this browser only, and never over another's
// work. What could not be saved stays in this browser and is offered again.
const PAUSE = 1200;
const AGAIN = 5000;

function clock(at = new Date()) {
  return at.toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });
}

function same(one, other) {
  return Object.keys(one).every((name) => (one[name] ?? "") === (other[name] ?? ""));
}

// The browser's own store may be full or forbidden: then the page still works and asks before it is left.
const store = {
  read(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // nothing to be done
    }
  },
  drop(key) {
    try {
      localStorage.removeItem(key);
    } catch {
      // nothing to be done
    }
  },
};

export function keepDraft(editor, draft, form, fields, typed, token) {
  const words = draft.dataset;
  const version = form.elements.version;
  const part = (name) => draft.querySelector(`[data-part=${name}]`);
  const key = () => `masthead:post:${words.pk || "new"}`;
  let saved = typed();
  let waiting = null;
  let [timer, busy, stopped, changed, leaving] = [0, false, Boolean(words.bound), Boolean(words.bound), false];

  const say = (text, state) => {
    const place = editor.querySelector("[data-part=state]");
    place.textContent = text;
    place.dataset.state = state;
  };
  // A text found earlier and not yet decided on stays where it is.
  const remember = () => part("found").hidden && store.write(key(), { texts: typed(), at: Date.now() });

  const become = (told) => {
    version.value = told.version;
    if (words.pk) return;
    store.drop(key());
    words.pk = String(told.pk);
    words.keep = told.keep;
    history.replaceState(history.state, "", told.page);
    form.action = told.page;
  };
  const conflict = () => {
    stopped = true;
    part("conflict").hidden = false;
    say(words.conflicting, "problem");
  };
  const post = async (texts) => {
    const body = new FormData();
    body.append("csrfmiddlewaretoken", token());
    body.append("version", version.value);
    for (const [name, text] of Object.entries(texts)) body.append(name, text);
    const answer = await fetch(words.keep, { method: "POST", body, redirect: "manual" });
    if (answer.type === "opaqueredirect" || answer.status === 403) return { out: true };
    const told = await answer.json();
    return { ...told, ok: answer.ok };
  };

  const save = async () => {
    if (busy || stopped || leaving) return;
    const texts = typed();
    if (same(texts, saved)) return;
    if (!words.keeps) return say(`${words.shown} ${clock()}`, "kept");
    if (!texts.title.trim()) return say(words.untitled, "problem");
    busy = true;
    say(words.saving, "saving");
    try {
      const told = await post(texts);
      if (told.ok) {
        saved = texts;
        become(told);
        if (same(typed(), saved)) store.drop(key());
        say(`${words.saved} ${clock()}`, "saved");
      } else if (told.conflict) conflict();
      else if (told.shown) say(words.shown, "kept");
      else say(told.out ? words.signedOut : `${words.refused} ${told.error}`, "problem");
    } catch {
      say(words.offline, "problem");
      timer = setTimeout(save, AGAIN);
    } finally {
      busy = false;
    }
    if (waiting) return form.requestSubmit(waiting.button);
    if (!same(typed(), texts)) soon();
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(save, PAUSE);
  };

  for (const field of fields) {
    field.addEventListener("input", () => {
      remember();
      soon();
    });
  }
  // What has no place in the draft, such as tags or the date, is saved by the buttons alone.
  form.addEventListener("change", (event) => {
    if (event.target.name && !fields.includes(event.target)) changed = true;
  });
  // What is on its way to be kept would be a change behind the form's back: the button waits for it.
  form.addEventListener("submit", (event) => {
    leaving = true;
    clearTimeout(timer);
    if (!busy) return;
    event.preventDefault();
    waiting = { button: event.submitter };
  });
  form.querySelector("[data-do=leave]")?.addEventListener("click", () => {
    leaving = true;
  });
  addEventListener("online", save);
  addEventListener("beforeunload", (event) => {
    if (!leaving && (changed || !same(typed(), saved))) event.preventDefault();
  });
  // Coming back by the browser's own button shows an old page: the form is read anew.
  addEventListener("pageshow", (event) => {
    leaving = false;
    if (event.persisted) location.reload();
  });

  const found = store.read(key());
  if (words.bound) {
    remember();
  } else if (found && same(saved, found.texts)) {
    store.drop(key());
  } else if (found) {
    part("found-at").textContent = new Date(found.at).toLocaleString(document.documentElement.lang);
    part("found").hidden = false;
    draft.querySelector("[data-do=take]").addEventListener("click", () => {
      for (const field of fields) {
        field.value = found.texts[field.name] ?? field.value;
        field.dispatchEvent(new Event("input", { bubbles: true }));
      }
      part("found").hidden = true;
      fields[0].focus();
    });
    draft.querySelector("[data-do=drop]").addEventListener("click", () => {
      store.drop(key());
      part("found").hidden = true;
      fields[0].focus();
    });
  }
}
