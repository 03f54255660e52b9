"""Charts as inline SVG for pages that are read on phones and by screen readers, in light and in dark.

Colours are those of the page (:mod:`dreamgym.pages`): classes ``s0`` to ``s5``, and the text's own. Every chart names
and describes itself; the numbers belong into a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

COLOURS = 6
"""How many series a chart tells apart by colour; more begin again."""

_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 38
_FAR = 8.0
"""A reference line that would make the axis longer than so many times what the rest takes is left out, and named."""

_MARKS = ("circle", "square", "diamond", "triangle", "cross", "bar")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")

_Place = Callable[[float, float], tuple[float, float]]
"""Where a point of the data lies in the picture."""


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        label: what the legend calls it.
        x: places on the horizontal axis, rising.
        y: values, as many.
        low: lower ends of their intervals, as many; empty where there are none.
        high: upper ends.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Axis(NamedTuple):
    """One axis.

    Attributes:
        label: what it shows, with its unit.
        low: where it begins; None lets the data say.
        high: where it ends, likewise.
        names: labels of the places 0, 1, 2 ... instead of numbers.
    """

    label: str
    low: float | None = None
    high: float | None = None
    names: Sequence[str] = ()


def line_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    references: Sequence[tuple[str, float]] = (),
    diagonal: bool = False,
) -> str:
    """Lines with markers and intervals, and a legend below them.

    Args:
        name: unique on the page, letters and digits; the SVG's ids begin with it.
        title: for screen readers.
        description: for them, too: what the chart shows.
        series: at least one that has a point.
        x: the horizontal axis.
        y: the vertical axis.
        references: horizontal lines by label; one that lies far away is named in the legend alone.
        diagonal: whether the line on which y is x is drawn.

    Returns:
        An ``<svg>`` and a list, as HTML. All text is escaped.
    """
    values = [v for line in series for part in (line.y, line.low, line.high) for v in part]
    near, far = _near(values, references)
    places = [v for line in series for v in line.x]
    left, right, x_ticks = _range(places if not x.names else [0, len(x.names) - 1], x, 5)
    bottom, top, y_ticks = _range(values + [v for _, v in near], y, 5)
    if x.names:
        left, right, x_ticks = left - 0.3, right + 0.3, list(range(len(x.names)))

    def at(place: float, value: float) -> tuple[float, float]:
        across = (place - left) / (right - left)
        up = (value - bottom) / (top - bottom)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_grid(at, (left, right, x_ticks, x), (bottom, top, y_ticks, y))]
    if diagonal:
        (x1, y1), (x2, y2) = at(left, left), at(right, right)
        parts.append(f'<line class="reference" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    legend: list[str] = []
    for index, (label, value) in enumerate(near):
        (x1, height), (x2, _) = at(left, value), at(right, value)
        dash = _DASHES[(index + 1) % len(_DASHES)]
        parts.append(
            f'<line class="reference" stroke-dasharray="{dash}" x1="{x1:.1f}" y1="{height:.1f}" x2="{x2:.1f}" '
            f'y2="{height:.1f}"/>'
        )
        swatch = f'<line class="reference" stroke-dasharray="{dash}" x1="0" y1="7" x2="28" y2="7"/>'
        legend.append(_entry(swatch, f"{label} ({value:,.4g})"))
    keys: list[str] = []
    for index, line in enumerate(series):
        parts.append(_line(index, line, at))
        keys.append(_entry(_swatch(index), line.label))
    legend = keys + legend + [_entry("", f"{label} ({value:,.4g}) lies outside the chart") for label, value in far]
    return _svg(name, title, description, _HEIGHT, "".join(parts)) + f'<ul class="legend">{"".join(legend)}</ul>'


def bar_chart(name: str, title: str, description: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Bars that lie, one below the other.

    Args:
        name: unique on the page, letters and digits; the SVG's ids begin with it.
        title: for screen readers.
        description: for them, too.
        bars: label, length (at least 0) and what is written behind it.

    Returns:
        An ``<svg>`` as HTML. All text is escaped.
    """
    longest = max((value for _, value, _ in bars), default=0.0) or 1.0
    left, row = 74, 30
    parts: list[str] = []
    for index, (label, value, text) in enumerate(bars):
        top, width = index * row + 5, (_WIDTH - left - 100) * value / longest
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="s0 bar" x="{left}" y="{top}" width="{max(width, 1):.1f}" height="20" rx="2"/>'
            f'<text class="tick" x="{left + width + 6:.1f}" y="{top + 14}">{escape(text)}</text>'
        )
    return _svg(name, title, description, row * len(bars) + 4, "".join(parts))


def _svg(name: str, title: str, description: str, height: int, content: str) -> str:
    return (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {_WIDTH} {height}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{content}</svg>"
    )


def _entry(swatch: str, label: str) -> str:
    picture = f'<svg aria-hidden="true" width="28" height="14" viewBox="0 0 28 14">{swatch}</svg>' if swatch else ""
    return f"<li>{picture}{escape(label)}</li>"


def _near(
    values: Sequence[float], references: Sequence[tuple[str, float]]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """References that are drawn, nearest first, and those too far away: the nearest two are drawn wherever they lie."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    near: list[tuple[str, float]] = []
    far: list[tuple[str, float]] = []
    for label, value in sorted(references, key=lambda named: max(low - named[1], named[1] - high)):
        if len(near) < 2 or max(high, value) - min(low, value) <= _FAR * (high - low):
            near.append((label, value))
            low, high = min(low, value), max(high, value)
        else:
            far.append((label, value))
    return near, far


def _range(values: Sequence[float], axis: Axis, most: int) -> tuple[float, float, list[float]]:
    """Where an axis begins and ends, and its ticks."""
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if not low < high:
        half = abs(low) / 10 or 0.5
        low, high = low - half, high + half
    ticks = [float(tick) for tick in MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if axis.low is None:
        low = min(low, next((tick for tick in reversed(ticks) if tick <= low), low))
    if axis.high is None:
        high = max(high, next((tick for tick in ticks if tick >= high), high))
    slack = 1e-9 * (high - low)
    return low, high, [tick for tick in ticks if low - slack <= tick <= high + slack]


def _grid(
    at: _Place, across: tuple[float, float, Sequence[float], Axis], up: tuple[float, float, Sequence[float], Axis]
) -> str:
    """Lines, numbers and names of both axes."""
    left, right, x_ticks, x = across
    bottom, _, y_ticks, y = up
    parts: list[str] = []
    for tick in y_ticks:
        (x1, height), (x2, _) = at(left, tick), at(right, tick)
        parts.append(
            f'<line class="grid" x1="{x1:.1f}" y1="{height:.1f}" x2="{x2:.1f}" y2="{height:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for index, tick in enumerate(x_ticks):
        place, height = at(tick, bottom)
        text = x.names[index] if x.names else _number(tick)
        last = place > _WIDTH - 2.5 * _RIGHT
        parts.append(
            f'<text class="tick" x="{min(place, _WIDTH - 2) if last else place:.1f}" y="{height + 17:.1f}" '
            f'text-anchor="{"end" if last else "middle"}">{escape(text)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    # Above the axis: upright beside it, it would meet long numbers.
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text class="axis" x="2" y="11">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _line(index: int, line: Series, at: _Place) -> str:
    """A series: its band or bars, the line, the markers."""
    colour, dash = f"s{index % COLOURS}", _DASHES[index % len(_DASHES)]
    parts: list[str] = []
    if len(line.low) == len(line.y) > 1:
        edge = [at(*point) for point in zip(line.x, line.high, strict=True)]
        edge += reversed([at(*point) for point in zip(line.x, line.low, strict=True)])
        parts.append(f'<polygon class="{colour} band" points="{_points(edge)}"/>')
    elif len(line.low) == len(line.y):
        for place, low, high in zip(line.x, line.low, line.high, strict=True):
            (x1, y1), (_, y2) = at(place, low), at(place, high)
            parts.append(f'<line class="{colour} line" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x1:.1f}" y2="{y2:.1f}"/>')
    points = [at(*point) for point in zip(line.x, line.y, strict=True)]
    parts.append(f'<polyline class="{colour} line" stroke-dasharray="{dash}" points="{_points(points)}"/>')
    # Markers on a line of many points would hide it.
    marked = points if len(points) <= 12 else [points[0], *points[4::5]]
    parts += [_mark(index, *point) for point in marked]
    return "".join(parts)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _swatch(index: int) -> str:
    colour, dash = f"s{index % COLOURS}", _DASHES[index % len(_DASHES)]
    return f'<line class="{colour} line" stroke-dasharray="{dash}" x1="0" y1="7" x2="28" y2="7"/>{_mark(index, 14, 7)}'


def _mark(index: int, x: float, y: float) -> str:
    """A marker that tells series apart without colour."""
    colour, kind = f"s{index % COLOURS} mark", _MARKS[index % len(_MARKS)]
    if kind == "circle":
        return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "diamond": ((0, -4), (4, 0), (0, 4), (-4, 0)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
        "cross": (
            (-3, -1),
            (-1, -1),
            (-1, -3),
            (1, -3),
            (1, -1),
            (3, -1),
            (3, 1),
            (1, 1),
            (1, 3),
            (-1, 3),
            (-1, 1),
            (-3, 1),
        ),
        "bar": ((-1.5, -4), (1.5, -4), (1.5, 4), (-1.5, 4)),
    }[kind]
    return f'<polygon class="{colour}" points="{_points([(x + dx, y + dy) for dx, dy in corners])}"/>'


def _number(value: float) -> str:
    """A tick: 20,000 as 20k, no trailing zeros."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{0.0 if math.isclose(value, 0, abs_tol=1e-12) else value:g}"
