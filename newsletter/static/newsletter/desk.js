// Draw the desk's charts and count down to the next date. Without this script the page says the same in words and tables.
const language = document.documentElement.lang || "en";
const numbers = new Intl.NumberFormat(language);
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function left(seconds) {
  const parts = [];
  for (const [unit, size] of UNITS) {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    if (count || parts.length) {
      parts.push(new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "long" }).format(count));
    }
  }
  return parts.slice(0, 3).join(" ");
}

function countDown(place) {
  const seconds = Math.floor((Date.parse(place.dateTime) - Date.now()) / 1000);
  const text = seconds > 0 ? `${place.dataset.before} ${left(seconds)}` : place.dataset.due;
  if (place.textContent !== text) place.textContent = text;
}

function scale(extra) {
  const ticks = { color: colour("chart-text"), precision: 0, maxRotation: 0, autoSkipPadding: 16 };
  return { ticks, grid: { color: colour("chart-line") }, border: { display: false }, ...extra };
}

function amount(value) {
  return numbers.format(Math.abs(value));
}

function options({ kind, series }) {
  const sideways = kind === "sideways";
  const figures = scale({ beginAtZero: true, stacked: kind === "bar" });
  figures.ticks.callback = (value) => amount(value);
  const names = scale({ stacked: kind === "bar" });
  names.grid.display = false;
  names.ticks.autoSkip = !sideways;
  return {
    animation: false,
    maintainAspectRatio: false,
    indexAxis: sideways ? "y" : "x",
    interaction: { mode: "index", intersect: false, axis: sideways ? "y" : "x" },
    scales: sideways ? { x: figures, y: names } : { x: names, y: figures },
    plugins: {
      legend: { display: series.length > 1, labels: { color: colour("chart-text"), boxWidth: 12 } },
      tooltip: { callbacks: { label: ({ dataset, raw }) => `${dataset.label}: ${amount(raw)}` } },
    },
  };
}

function dataset({ label, colour: name, values }, kind) {
  const shown = colour(name);
  const line = { borderColor: shown, borderWidth: 2, pointRadius: 0, pointHitRadius: 12, tension: 0 };
  const bar = { backgroundColor: shown, borderRadius: 2, maxBarThickness: 18 };
  return { label, data: values, ...(kind === "line" ? line : bar) };
}

function draw(canvas, chart) {
  window.Chart.getChart(canvas)?.destroy();
  const datasets = chart.series.map((series) => dataset(series, chart.kind));
  const type = chart.kind === "line" ? "line" : "bar";
  new window.Chart(canvas, { type, data: { labels: chart.labels, datasets }, options: options(chart) });
}

function drawAll() {
  const charts = JSON.parse(document.getElementById("desk-charts")?.textContent || "{}");
  for (const canvas of document.querySelectorAll("[data-chart]")) draw(canvas, charts[canvas.dataset.chart]);
}

for (const place of document.querySelectorAll("[data-countdown]")) {
  countDown(place);
  setInterval(countDown, 1000, place);
}
drawAll();
new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["class"] });
