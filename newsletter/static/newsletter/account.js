// The pages of signing in follow the theme that was chosen in the admin, and say so when a passkey can't be used.
const chosen = (localStorage.getItem("adminTheme") ?? "").replaceAll('"', "");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  document.getElementById("passkey-error").hidden = false;
});

document.addEventListener("DOMContentLoaded", () => {
  const hint = document.getElementById("passkey-name");
  if (hint) hint.hidden = !/^[\d.]+$|^\[/.test(location.hostname);
});
