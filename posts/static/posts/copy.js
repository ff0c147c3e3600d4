// What only a script can offer on a post's page: buttons that copy a piece of code or the page's address, and the
// system's own sheet for sharing. Without it the page lacks these buttons and nothing else.

const SHOWN_FOR = 2000; // milliseconds
const prose = document.querySelector(".prose[data-copy]");
const said = document.getElementById("copied");

async function copy(button, text) {
  button.dataset.words ??= button.textContent; // a second press finds another text there
  await navigator.clipboard.writeText(text);
  button.textContent = said.textContent = prose.dataset.copied;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    button.textContent = button.dataset.words;
    said.textContent = "";
  }, SHOWN_FOR);
}

function offer(button, act) {
  button.addEventListener("click", act);
  button.closest(".needs-script")?.classList.remove("needs-script");
}

function copyButton(box) {
  const code = box.querySelector("pre");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = prose.dataset.copy;
  button.setAttribute("aria-label", `${prose.dataset.copy}: ${code.getAttribute("aria-label")}`);
  box.insertBefore(button, code);
  offer(button, () => copy(button, code.textContent));
}

if (prose && navigator.clipboard) {
  prose.querySelectorAll(".code").forEach(copyButton);
  for (const button of document.querySelectorAll("[data-copy-link]")) {
    offer(button, () => copy(button, button.dataset.copyLink));
  }
}

if (navigator.share) {
  for (const button of document.querySelectorAll("[data-share]")) {
    const page = { title: button.dataset.title, url: button.dataset.share };
    // Closing the sheet is no error.
    offer(button, () => navigator.share(page).catch(() => {}));
  }
}
