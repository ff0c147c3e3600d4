// Says that the questions are under way: the answer takes some seconds, and one press is enough.
const form = document.querySelector(".doctor-ask");

form?.addEventListener("submit", () => {
  form.querySelector("[role=status]").textContent = form.dataset.asking;
  form.querySelector("button").disabled = true;
});

// The page that the browser kept for "back" is as it was before the press.
window.addEventListener("pageshow", () => {
  form?.querySelector("button").removeAttribute("disabled");
});
