"""Pages of HTML that are one file each: no script, nothing fetched, readable on a phone, in light and in dark.

Text is escaped where it is put in: by :func:`table`, :func:`text` and their like. What these return is HTML and goes
into :func:`page` as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

COLOURS = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0;
  --c0: #0b62b5; --c1: #b4490a; --c2: #0b7a55; --c3: #8b3f9e; --c4: #7d5c00; --c5: #b3265a; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12161b; --card: #1b2129; --ink: #e6eaef; --soft: #a3adb8; --rule: #39424d;
    --c0: #6db3f5; --c1: #f09a5f; --c2: #57c9a0; --c3: #cf9ae0; --c4: #d9b84a; --c5: #f08bb0; } }
"""
"""Colours in light and in dark, as variables of a style sheet."""

_STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; padding: 0; }
.facts div { background: var(--card); border-radius: 6px; padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.cards > figure { max-width: 36rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border-radius: 6px; min-width: 0; }
figcaption { margin-bottom: .5rem; }
figcaption h3 { color: var(--ink); }
svg.chart, video, figure > img { display: block; width: 100%; height: auto; }
video, img { image-rendering: pixelated; }
video { background: #000; margin-bottom: .5rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .4rem 0 0; padding: 0;
  font-size: .85rem; }
.legend svg { margin-right: .35rem; vertical-align: -2px; }
.tick { font: 11px system-ui, sans-serif; fill: var(--soft); }
.axis { font: 11px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--rule); }
.reference { stroke: var(--soft); stroke-width: 1.3; }
.line { fill: none; stroke-width: 1.8; }
.band { opacity: .18; stroke: none; }
.s0 { stroke: var(--c0); fill: var(--c0); } .s1 { stroke: var(--c1); fill: var(--c1); }
.s2 { stroke: var(--c2); fill: var(--c2); } .s3 { stroke: var(--c3); fill: var(--c3); }
.s4 { stroke: var(--c4); fill: var(--c4); } .s5 { stroke: var(--c5); fill: var(--c5); }
.line.line { fill: none; } .band.band, .mark.mark, .bar.bar { stroke: none; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--c0); padding: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.words { min-width: 9rem; overflow-wrap: anywhere; }
.codes { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(3.4rem, 1fr)); gap: .5rem;
  margin: 0; padding: 0; font-size: .7rem; color: var(--soft); text-align: center; }
.codes img { display: block; width: 2.6rem; height: 2.6rem; margin: 0 auto .15rem; border: 1px solid var(--rule); }
.codes .unused img { opacity: .45; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{lead}</header>
<main>{sections}</main>
</body>
</html>
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        lead: HTML below the title.
        sections: HTML, as of :func:`section`.
    """
    return _PAGE.format(title=escape(title), style=COLOURS + _STYLE, lead=lead, sections="".join(sections))


def section(title: str, *content: str) -> str:
    """A part of a page: a heading, plain text, and HTML below it."""
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"


def text(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(words)}</p>"


def facts(values: Mapping[str, str]) -> str:
    """The few numbers that are read first: names and values, both plain text."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{items}</dl>'


def figure(title: str, caption: str, *content: str, numbers: str = "") -> str:
    """A chart, video or picture with what it shows.

    Args:
        title: plain text.
        caption: plain text.
        content: HTML.
        numbers: HTML of a table with the same numbers, which is folded away; none where empty.
    """
    folded = f"<details><summary>Numbers</summary>{numbers}</details>" if numbers else ""
    shown = f"<h3>{escape(title)}</h3>{escape(caption)}"
    return f"<figure><figcaption>{shown}</figcaption>{''.join(content)}{folded}</figure>"


def cards(*figures: str) -> str:
    """Figures side by side where there is room."""
    return f'<div class="cards">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls sideways by itself where it is too wide.

    Args:
        head: plain text.
        rows: plain text, or numbers, which are written with four digits; None is a dash.
    """
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(head))]
    kinds = ["number" if is_number else "words" for is_number in numeric]
    top = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{escape(shown(cell))}</td>' for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(value: Any) -> str:
    """A value as plain text: numbers with four digits and separators, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def folded(summary: str, content: str) -> str:
    """HTML that is folded away below plain text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def picture(pixels: npt.NDArray[np.uint8], description: str) -> str:
    """A picture, uint8 (height, width) or (height, width, 3), with what it shows in plain text."""
    height, width = pixels.shape[:2]
    return (
        f'<img src="data:image/png;base64,{_png(pixels)}" width="{width}" height="{height}" '
        f'alt="{escape(description)}">'
    )


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def film(content: bytes, size: tuple[int, int], description: str) -> str:
    """A video that plays when it is told to.

    Args:
        content: an MP4 file.
        size: (height, width) in pixels.
        description: what it shows, plain text.
    """
    source = base64.b64encode(content).decode()
    return (
        f'<video controls loop muted playsinline preload="auto" width="{size[1]}" height="{size[0]}" '
        f'aria-label="{escape(description)}" src="data:video/mp4;base64,{source}"></video>'
    )
