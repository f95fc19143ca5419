"""Draw a frontier: throughput over latency, the chosen plan marked. The only module that imports matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from planner.frontier import Point

_INK, _FAINT, _LINE, _CHOSEN = "#22303c", "#b9c3cc", "#2467a8", "#d1495b"
_WIDE_LATENCY, _WIDE_RATE = 8.0, 100.0
"""Largest over smallest, from where on an axis is logarithmic; throughput matters most where it is high."""
_MARGIN = 0.06
"""Of an axis, free at either end."""
_LABEL_GAP = 3.0
"""Pixels around a label that no other one touches."""
_RIGHT = 0.85
"""Share of the width from where on labels stand to the left of their points."""
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def gid(index: int) -> str:
    """The id that point `index` has in the SVG."""
    return f"point-{index}"


def to_png(points: Sequence[Point]) -> bytes:
    """The drawing as pixels."""
    return _saved(points, "png")


def to_svg(points: Sequence[Point]) -> str:
    """The drawing as one `svg` element, to stand in a page."""
    text = _saved(points, "svg").decode()
    return text[text.index("<svg") :]


def _saved(points: Sequence[Point], kind: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    style = mpl.rc_context(
        {
            "font.size": 10.0,
            "font.family": "DejaVu Sans",
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "text.color": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "svg.hashsalt": "frontier",
            "svg.fonttype": "path",
            "text.parse_math": False,
        }
    )
    with style:
        figure = _draw(points)
        figure.savefig(buffer, format=kind, dpi=160, metadata=_NO_METADATA if kind == "svg" else None)
    return buffer.getvalue()


def _draw(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    _set_axes(axes, points)
    shown = [(index, point) for index, point in enumerate(points) if _is_inside(axes, point)]
    axes.plot(*_coordinates([p for _, p in shown if p.is_efficient]), color=_LINE, linewidth=1.6, zorder=2)
    for index, point in shown:
        if point.is_chosen:
            _mark(axes, index, point, "*", 17.0, _CHOSEN)
        elif point.is_efficient:
            _mark(axes, index, point, "o", 6.5, _LINE)
        else:
            _mark(axes, index, point, "o", 4.5, _FAINT)
    _add_legend(axes, points)
    figure.draw_without_rendering()  # labels are placed where the final layout puts the points
    _add_labels(axes, [point for _, point in shown if point.is_efficient or point.is_chosen])
    return figure


def _mark(axes: Axes, index: int, point: Point, marker: str, size: float, color: str) -> None:
    axes.plot(
        [point.latency_s],
        [point.tokens_per_s],
        marker=marker,
        markersize=size,
        color=color,
        markeredgecolor="white",
        markeredgewidth=0.7,
        linestyle="none",
        zorder=4 if point.is_chosen else 3 if point.is_efficient else 1,
        gid=gid(index),
    )


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.latency_s for point in points], [point.tokens_per_s for point in points]


def _set_axes(axes: Axes, points: Sequence[Point]) -> None:
    """Limits around the frontier and the chosen plan; what a user gives and gets, with units."""
    plan = points[0].plan
    latencies, rates = _coordinates([point for point in points if point.is_efficient or point.is_chosen])
    _set_scale(axes, "x", latencies, _WIDE_LATENCY)
    _set_scale(axes, "y", rates, _WIDE_RATE)
    axes.set_xlabel("latency of one block, prefill and decode (s)")
    prompts = plan.workload.num_prompts
    over = f", all {prompts} prompts" if prompts else ""
    axes.set_ylabel(f"throughput (generated tokens/s{over})")
    lengths = f"prompt {plan.workload.prompt_len}, gen {plan.workload.gen_len}"
    axes.set_title(f"{plan.model.name} on {plan.hardware.name}, {lengths}", loc="left", pad=12)
    axes.grid(True, color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _set_scale(axes: Axes, name: Literal["x", "y"], values: Sequence[float], wide: float) -> None:
    """Logarithmic where the values span much; ticks are plain numbers either way."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    set_limits = axes.set_xlim if name == "x" else axes.set_ylim
    low, high = min(values), max(values)
    if high / low > wide:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        factor = (high / low) ** _MARGIN
        set_limits(low / factor, high * factor)
        decades = math.log10(high / low)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    else:
        low = 0.0 if name == "y" else low
        room = _MARGIN * (high - low or high)
        set_limits(low - (room if name == "x" else 0.0), high + (2.0 * room if name == "y" else room))
        axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _is_inside(axes: Axes, point: Point) -> bool:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return left <= point.latency_s <= right and low <= point.tokens_per_s <= high


def _add_legend(axes: Axes, points: Sequence[Point]) -> None:
    """Empty lines stand for the kinds of points there are."""
    kinds = [("chosen plan", "*", 13.0, _CHOSEN), ("frontier: none is better in both", "o", 6.5, _LINE)]
    if not all(point.is_efficient for point in points):
        kinds.append(("other plans met", "o", 4.5, _FAINT))
    for label, marker, size, color in kinds:
        axes.plot([], [], marker=marker, markersize=size, color=color, linestyle="none", label=label)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _add_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Block sizes, the chosen one's first, where they stand in nobody's way."""
    at = axes.transData.transform([(point.latency_s, point.tokens_per_s) for point in points])
    placed = [Bbox.from_bounds(x, y, 0.0, 0.0).padded(_LABEL_GAP) for x, y in at]
    for point in sorted(points, key=lambda point: (not point.is_chosen, -point.tokens_per_s)):
        label = _label(axes, point)
        box = label.get_window_extent().padded(_LABEL_GAP)
        if box.y0 < axes.bbox.y0 or any(box.overlaps(other) for other in placed):
            label.remove()
        else:
            placed.append(box)


def _label(axes: Axes, point: Point) -> Annotation:
    """Above the chosen point, below and beside the others: the frontier rises to the right."""
    text, at = f"block {point.plan.policy.block_size}", (point.latency_s, point.tokens_per_s)
    if point.is_chosen:
        return axes.annotate(
            text, at, xytext=(0, 10), textcoords="offset points", ha="center", fontsize=9.5, color=_CHOSEN
        )
    is_right = axes.transAxes.inverted().transform(axes.transData.transform(at))[0] > _RIGHT
    offset, side = ((-9, -14), "right") if is_right else ((9, -14), "left")
    return axes.annotate(text, at, xytext=offset, textcoords="offset points", ha=side, fontsize=8.5)
