"""What the benchmarks tell people: lines on standard error while they work, and a table at the end."""

from __future__ import annotations

import sys
from statistics import median


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(rows: dict[str, list[float]]) -> str:
    """Return median, minimum and maximum of each row's figures, in columns."""
    width = max(32, *(len(name) + 2 for name in rows))
    lines = [f"{'':{width}}{'median':>12}{'min':>12}{'max':>12}"]
    for name, figures in rows.items():
        columns = (median(figures), min(figures), max(figures))
        lines.append(f"{name:{width}}" + "".join(f"{_figure(value):>12}" for value in columns))
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
