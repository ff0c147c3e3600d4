// Keep the equation of an issue that is being sent up to date. Without this script a reload does the same.
const equation = () => document.querySelector("[data-counts]");

async function refresh() {
  const answer = await fetch(equation().dataset.counts, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const counts = await answer.json();
  for (const place of document.querySelectorAll("[data-count]")) {
    place.textContent = counts[place.dataset.count];
  }
  if (["frozen", "sending", "paused"].includes(counts.state)) setTimeout(refresh, 2000);
}

document.addEventListener("DOMContentLoaded", () => {
  if (equation()) refresh();
});
