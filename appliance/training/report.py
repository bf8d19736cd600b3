"""The evaluation as one HTML file: no script, no link, plots drawn as inline SVG; readable in a sealed room."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = Sequence[tuple[float, float]]

WIDTH, HEIGHT, MARGIN = 560, 320, 48
TASK_FIGURES = {"accuracy": "router", "best_single": "best single", "oracle": "oracle"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b2430}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #d8dee6}
td,th{text-align:right}td+td+td{white-space:nowrap}
td:first-child,th:first-child{text-align:left}code{font-size:.85em}.note{color:#5a6675}
.warning{border-left:.3rem solid #b45309;padding-left:.8rem;font-weight:600}
svg{max-width:100%;height:auto}
"""


def render(
    report: Mapping[str, Any], *, title: str, tasks: Sequence[Mapping[str, Any]], curve: Curve, names: str
) -> str:
    """The page.

    Args:
        report: figures and `intervals`, as `evaluate --json` prints them.
        title: heading; escaped, like every text of the data.
        tasks: rows of the per-task table, as `curves.by_task` makes them.
        curve: points (share of strong calls or cost, accuracy), ascending.
        names: what the curve's axis shows.
    """
    figures = "".join(
        f"<tr><td>{_text(name)}</td><td>{_number(report.get(name))}</td><td>{_range(bounds)}</td></tr>"
        for name, bounds in report["intervals"].items()
    )
    facts = "".join(
        f"<tr><td>{_text(key)}</td><td><code>{_text(value)}</code></td></tr>"
        for key, value in report.items()
        if isinstance(value, str | int | float | bool) and key not in report["intervals"]
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><h1>{_text(title)}</h1>{_warning(report)}"
        f"<table>{facts}</table><h2>Figures, with 95 % intervals</h2>"
        "<p class='note'>cpt: percent of calls to the strong model; ms: milliseconds; all others: shares of 1.</p>"
        f"<table><tr><th>figure</th><th>value</th><th>95 %</th></tr>{figures}</table>"
        f"<h2>Cost and quality</h2>{_plot(curve, names)}"
        f"<h2>By task</h2>{_tasks(tasks)}</body></html>\n"
    )


def _warning(report: Mapping[str, Any]) -> str:
    if not report.get("seen_in_training"):
        return ""
    return "<p class='warning'>The router was fitted on much of this data: the figures below prove nothing.</p>"


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    if not tasks:
        return "<p class='note'>The data names no tasks.</p>"
    rows = "".join(
        f"<tr><td>{_text(row['task'])}</td><td>{row['prompts']}</td>"
        + "".join(f"<td>{_number(row[name])}</td><td>{_range(row['intervals'][name])}</td>" for name in TASK_FIGURES)
        + "</tr>"
        for row in tasks
    )
    named = "".join(f"<th>{_text(name)}</th><th>95 %</th>" for name in TASK_FIGURES.values())
    head = f"<tr><th>task</th><th>prompts</th>{named}</tr>"
    return f"<table>{head}{rows}</table>"


def _plot(curve: Curve, names: str) -> str:
    """A polyline with its two axes, and the straight line between its ends (what a coin reaches)."""
    if len(curve) < 2:
        return "<p class='note'>No cost is known; name it with --price MODEL=COST to see the curve.</p>"
    points = np.asarray(curve, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    spread = np.where(high - low > 1e-12, high - low, 1.0)

    def place(point: NDArray[np.float64]) -> str:
        x, y = (point - low) / spread
        return f"{MARGIN + x * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN):.1f}"

    line = " ".join(place(point) for point in points)
    chord = f"{place(points[0])} {place(points[-1])}"
    ticks = "".join(
        f"<text x='{MARGIN + f * (WIDTH - 2 * MARGIN):.0f}' y='{HEIGHT - MARGIN + 18}' text-anchor='middle'>"
        f"{low[0] + f * spread[0]:.3g}</text>"
        f"<text x='{MARGIN - 6}' y='{HEIGHT - MARGIN - f * (HEIGHT - 2 * MARGIN) + 4:.0f}' text-anchor='end'>"
        f"{low[1] + f * spread[1]:.3g}</text>"
        for f in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        "<p class='note'>Dashed: a coin between both ends.</p>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' font-size='11' fill='#5a6675'>"
        f"<title>{_text(names)}</title>"
        f"<path d='M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}' fill='none' stroke='#9aa5b1'/>{ticks}"
        f"<polyline points='{chord}' fill='none' stroke='#9aa5b1' stroke-dasharray='4 4'/>"
        f"<polyline points='{line}' fill='none' stroke='#0b6bcb' stroke-width='2'/>"
        f"<text x='{WIDTH / 2}' y='{HEIGHT - 8}' text-anchor='middle'>{_text(names)}</text></svg>"
    )


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _range(bounds: Sequence[float | None]) -> str:
    return f"{_number(bounds[0])} – {_number(bounds[1])}"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
