// Shows the results as one types. It asks for the page that the form would lead to and takes its results from there,
// so both ways show the same; without scripts, and where a request fails, the form works as any form does.

const PAUSE = 200; // milliseconds without a key before it asks
const form = document.querySelector("form[data-live]");
let waiting = 0;
let underWay = new AbortController();

function address() {
  const asked = new URLSearchParams(new FormData(form));
  for (const [name, value] of [...asked]) if (!value.trim()) asked.delete(name);
  return asked.size ? `${form.action}?${asked}` : form.action;
}

async function look() {
  const wanted = address();
  if (wanted === location.href) return;
  underWay.abort();
  underWay = new AbortController();
  try {
    const answer = await fetch(wanted, { signal: underWay.signal });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const id of ["found", "results"]) {
      document.getElementById(id).replaceChildren(...page.getElementById(id).childNodes);
    }
    document.title = page.title;
    history.replaceState(null, "", wanted);
  } catch {
    // Another key was pressed meanwhile, or the network is away: the button still works.
  }
}

form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(look, PAUSE);
});
