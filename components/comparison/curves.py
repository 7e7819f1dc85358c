"""Curves of every metric over all stages, one small picture each, as SVG for a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from components.comparison.contestants import Contestant

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2")
FIRST = ("loss", "learning_rate", "grad_norm", "samples_per_s")
"""Metrics that people look at first, in this order."""

Curve = list[tuple[float, float]]


def curves_of(contestant: Contestant) -> tuple[dict[str, Curve], list[tuple[float, str]]]:
    """Points (steps since the first stage began, value) of each metric, and (first step, name) of each stage."""
    curves: dict[str, Curve] = {}
    starts: list[tuple[float, str]] = []
    offset = 0.0
    for stage in contestant.stages:
        starts.append((offset, stage.name))
        for point in stage.history:
            for name, value in point.rates().items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((offset + point.step, value))
        offset += stage.step
    return curves, starts


def draw_curves(contestants: Sequence[Contestant]) -> list[tuple[str, str]]:
    """(metric, SVG) for every metric that any of the contestants has, the ones people look at first in front."""
    drawn = [curves_of(contestant) for contestant in contestants]
    names = dict.fromkeys(name for curves, _ in drawn for name in curves)
    ordered = [name for name in FIRST if name in names] + sorted(name for name in names if name not in FIRST)
    return [
        (name, _svg(name, [curves.get(name, []) for curves, _ in drawn], [starts for _, starts in drawn]))
        for name in ordered
    ]


def _svg(name: str, curves: Sequence[Curve], starts: Sequence[list[tuple[float, str]]]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "kinoflow", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2, 2.1), layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            if curve:
                steps, values = zip(*curve, strict=True)
                line = "-" if number == 0 else (0, (5, 1 + number))
                marker = "o" if len(curve) < 4 else None
                axes.plot(
                    steps, values, color=COLOURS[number % len(COLOURS)], linewidth=1.6, linestyle=line, marker=marker
                )
        heights = [value for curve in curves for _, value in curve]
        if heights and min(heights) > 0 and max(heights) > 20 * min(heights):
            axes.set_yscale("log")
        longest = max(starts, key=lambda each: each[-1][0] if each else 0.0)
        for step, stage in longest:
            if step:
                axes.axvline(step, color="#94a3b8", linewidth=0.8, linestyle=":")
            told = axes.annotate(
                stage, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 2), textcoords="offset points",
                fontsize=7, color="#64748b",
            )  # fmt: skip
            told.set_in_layout(False)  # a stage without points may begin far outside the axes
        axes.set_xlim(left=0)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inside_a_page(buffer.getvalue(), name)


def _inside_a_page(svg: str, name: str) -> str:
    """The element alone, its ids told apart from those of the other pictures of the page."""
    element = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "-", name)
    element = re.sub(r'id="', f'id="{prefix}-', element)
    element = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", element)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", element.replace('height="', 'data-height="', 1), count=1)
