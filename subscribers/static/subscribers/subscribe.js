// While a sign-up is under way its button says so, and a second press sends nothing twice.
// Without this the form works the same; the browser shows that something is under way.

const BUSY = "aria-busy";

for (const form of document.querySelectorAll("form[data-sending]")) {
  const button = form.querySelector("button");
  const idle = button.textContent;

  form.addEventListener("submit", (event) => {
    if (form.hasAttribute(BUSY)) {
      event.preventDefault();
      return;
    }
    form.setAttribute(BUSY, "true");
    button.textContent = form.dataset.sending;
  });

  // Coming back by the browser's button shows the page as it was left.
  window.addEventListener("pageshow", () => {
    form.removeAttribute(BUSY);
    button.textContent = idle;
  });
}
