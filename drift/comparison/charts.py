"""Pictures of a comparison: learning curves, accuracy against network evaluations, phases.

Each chart draws onto given axes; as PNG several stand on one sheet with a legend, as SVG each is a
picture of its own whose ink is `currentColor`, so that a page's dark mode applies to it.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from drift.comparison.records import Curve, RunGroup, by_test_set, pareto
from drift.runs.tracking import PHASES, shortened

INK = "#345678"  # of text and axes in an SVG, replaced by currentColor; no line has it
GREY = "#444444"  # the same in a PNG
COLORS = (  # Okabe and Ito's, which colour-blind readers tell apart, without black and yellow
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#999999",
    "#8C6BB1",
)
LABEL = 30  # characters of a label beside a bar
MARKERS = {"-": "o", "--": "s", ":": "^", "-.": "D"}  # by the dashes of a group's lines
DASHES = tuple(MARKERS)
PHASE_COLORS = dict(zip(PHASES, COLORS, strict=False))
AXES = {
    "steps": "step",
    "seconds": "seconds of training (rollout, reward, update, sync)",
    "samples": "samples (completions)",
}
SMOOTHED = {"reward/mean": 5}  # steps of a running mean: each step has other problems
CURVES = {
    "reward/mean": "mean reward (of 5 steps)",
    "eval/accuracy": "validation accuracy",
}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "drift",
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture: Chart(title="mean reward by step", sheet="learning", draw=...)."""

    title: str
    sheet: str  # the PNG file that has it
    draw: Callable[[Axes, list[RunGroup]], None]


def looks(groups: list[RunGroup]) -> list[dict[str, Any]]:
    """Colour and dashes of each group; 32 differ.

    Where the groups differ by two settings or more, dashes tell the values of the last one that has
    few, and colours the rest: masking=all is blue for every rollout.
    """
    keys = list(groups[0].settings)
    values = {key: list(dict.fromkeys(group.settings[key] for group in groups)) for key in keys}
    for key in reversed(keys if len(keys) > 1 else []):
        others = [tuple(v for k, v in group.settings.items() if k != key) for group in groups]
        colors = list(dict.fromkeys(others))
        if 1 < len(values[key]) <= len(DASHES) and len(colors) <= len(COLORS):
            return [
                {
                    "color": COLORS[colors.index(other)],
                    "linestyle": DASHES[values[key].index(group.settings[key])],
                }
                for group, other in zip(groups, others, strict=True)
            ]
    size = len(COLORS)
    return [
        {"color": COLORS[n % size], "linestyle": DASHES[n // size % len(DASHES)]}
        for n in range(len(groups))
    ]


def together(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Curves of several runs on one grid, as far as all of them go.

    Returns:
        The grid [N], and the curves [runs, N] with straight lines between their points.
    """
    low = max(xs[0] for xs, _ in curves)
    high = min(xs[-1] for xs, _ in curves)
    grid = np.linspace(low, high, len(curves[0][0]))
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in curves])


def smooth(curve: Curve, window: int) -> Curve:
    """Each point the mean of it and up to `window` - 1 points before it."""
    xs, ys = curve
    return xs, [float(np.mean(ys[max(0, i + 1 - window) : i + 1])) for i in range(len(ys))]


def learning(metric: str, axis: str) -> Callable[[Axes, list[RunGroup]], None]:
    """A line for each group, the mean over its runs; the band goes from the least to the most."""
    window = SMOOTHED.get(metric, 1)

    def draw(axes: Axes, groups: list[RunGroup]) -> None:
        for group, look in zip(groups, looks(groups), strict=True):
            curves = [curve for run in group.shown if (curve := run.curve(metric, axis))[0]]
            if not curves:
                continue
            grid, values = together([smooth(curve, window) for curve in curves])
            few = len(grid) < 12
            axes.plot(
                grid,
                values.mean(0),
                **look,
                label=group.label,
                linewidth=1.5,
                marker="o" if few else None,
                markersize=3,
            )
            if len(curves) > 1:
                axes.fill_between(
                    grid, values.min(0), values.max(0), color=look["color"], alpha=0.15, lw=0
                )
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel(CURVES[metric])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return draw


def accuracy_over_nfe(axes: Axes, groups: list[RunGroup]) -> None:
    """Where each group ends: test accuracy with its interval against network evaluations.

    A line with rings joins the groups on the Pareto front, one for each set of test problems.
    """
    label = "Pareto front"
    for same in by_test_set(groups):
        ends = [(group.figure("NFE"), group.accuracy("last")) for group in pareto(same)]
        front = sorted((nfe, last.value) for nfe, last in ends if nfe is not None and last)
        if len(same) > 1 and front:
            axes.plot(
                [nfe for nfe, _ in front],
                [value for _, value in front],
                color="#999999",
                linewidth=1,
                marker="o",
                markersize=11,
                markerfacecolor="none",
                zorder=1,
                drawstyle="steps-post",
                label=label,
            )
            label = "_"  # the legend has it once
    for group, look in zip(groups, looks(groups), strict=True):
        accuracy, nfe = group.accuracy("last"), group.figure("NFE")
        if accuracy is None or nfe is None:
            continue
        value = accuracy.value
        low, high = accuracy.ci95 or (value, value)
        below, above = max(0.0, value - low), max(0.0, high - value)  # rounded ends, as 1e-18 for 0
        axes.errorbar(
            [nfe],
            [value],
            yerr=[[below], [above]],
            fmt=MARKERS[look["linestyle"]],
            color=look["color"],
            capsize=3,
            label=group.label,
        )
    axes.set_xlabel("network evaluations of a completion (NFE)")
    axes.set_ylabel("final test accuracy")


def phase_shares(axes: Axes, groups: list[RunGroup]) -> None:
    """A bar for each group, the shares of its time."""
    shown = [group for group in groups if any(run.phase_shares for run in group.shown)]
    for row, group in enumerate(shown):
        left = 0.0
        for phase in PHASES:
            shares = [run.phase_shares[phase] for run in group.shown if run.phase_shares]
            share = sum(shares) / len(shares)
            axes.barh(
                row,
                share,
                left=left,
                color=PHASE_COLORS[phase],
                height=0.7,
                label=phase if row == 0 else None,
            )
            left += share
    labels = [shortened(group.label, LABEL) for group in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the time of all steps")
    axes.grid(visible=False)
    if shown and (figure := axes.get_figure()) is not None:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)


CHARTS = [
    *(
        Chart(title=f"{words} by {axis}", sheet="learning", draw=learning(metric, axis))
        for metric, words in CURVES.items()
        for axis in AXES
    ),
    Chart(
        title="accuracy against NFE (ringed: the Pareto front)",
        sheet="accuracy_nfe",
        draw=accuracy_over_nfe,
    ),
    Chart(title="where the time goes", sheet="phases", draw=phase_shares),
]


def svg(chart: Chart, groups: list[RunGroup]) -> str:
    """The chart as an SVG element without fixed size, for a page."""
    ink: Any = {f"{name}.color": INK for name in ("text", "xtick", "ytick", "grid")}
    ink |= {"axes.edgecolor": INK, "axes.labelcolor": INK}
    with matplotlib.rc_context(STYLE | ink):
        figure = Figure(figsize=(4.6, size_of(chart, groups)), layout="constrained")
        axes = figure.add_subplot()
        chart.draw(axes, groups)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()[file.getvalue().index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("<svg", f'<svg role="img" aria-label="{chart.title}"', 1)
    return text.replace(INK, "currentColor")


def size_of(chart: Chart, groups: list[RunGroup]) -> float:
    """Height in inches; bars need a line each."""
    return max(3.2, 1.2 + 0.3 * len(groups)) if chart.sheet == "phases" else 3.2


def write_sheets(folder: Path, groups: list[RunGroup]) -> list[Path]:
    """One PNG for each sheet, with a legend."""
    written: list[Path] = []
    for sheet in dict.fromkeys(chart.sheet for chart in CHARTS):
        charts = [chart for chart in CHARTS if chart.sheet == sheet]
        columns = min(3, len(charts))
        rows = -(-len(charts) // columns)
        with matplotlib.rc_context(STYLE | {"text.color": GREY}):
            height = max(size_of(chart, groups) for chart in charts)
            width = 4.3 if columns > 1 else 6.5
            figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
            grid = np.atleast_1d(figure.subplots(rows, columns)).flatten()
            for axes, chart in zip(grid, charts, strict=True):
                chart.draw(axes, groups)
            handles, labels = grid[0].get_legend_handles_labels()
            if sheet != "phases" and labels:
                figure.legend(
                    handles, labels, loc="outside lower center", ncols=columns + 1, frameon=False
                )
            path = folder / f"{sheet}.png"
            figure.savefig(path, dpi=100)
        written.append(path)
    return written
