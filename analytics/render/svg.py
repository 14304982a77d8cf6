"""Figures of a report: what is drawn as data, and as SVG by matplotlib.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by colour-blind readers; series differ in
marker and dash as well. Everything else takes the colour of the text around it, so that a figure is readable on white
and on black. The words of a figure say its numbers to those who do not see it.
"""

from __future__ import annotations

import re
import warnings
from io import StringIO
from typing import TYPE_CHECKING, Any

from analytics.say.blocks import Figure, Mark
from analytics.text import number, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MARKERS = ("o", "s", "D", "^", "X", "P", "*")
DASHES = ("-", "--", ":", "-.")
_INK = "#010203"
"""Stands for the colour of the text, which an SVG within a page takes over as `currentColor`."""
_ACCENT = "#0072b2"
"""The first colour; a page may give a lighter one on black."""
COLOURS = (_ACCENT, "#D55E00", "#009E73", "#CC79A7", "#E69F00", _INK)
_MOST = 40
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "wattbench",  # the same figure has the same identifiers
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 9,
    "axes.spines.top": False,
    "date.converter": "concise",
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def svg(figure: Figure, width: float = 6.4) -> str:
    """Draw a figure, `width` in inches: an `<svg>` element to be put into a page, the same for the same figure."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's font may have it
        canvas = Canvas(layout="constrained", figsize=(width, 1))
        axes = canvas.add_subplot()
        (_along if figure.along else _under)(figure, canvas, axes)
        file = StringIO()
        absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(file, format="svg", transparent=True, metadata=absent)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_ACCENT, f"var(--accent, {_ACCENT})")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1))


def _under(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    """Draw marks one under the other, a line for each name."""
    names = list(dict.fromkeys(mark.name for group in figure.groups for mark in group.marks))[:_MOST]
    canvas.set_figheight(1.1 + 0.3 * len(names) + 0.2 * len(figure.groups))
    for index, group in enumerate(figure.groups):
        aside = 0.22 * (index - (len(figure.groups) - 1) / 2)
        shown = [mark for mark in group.marks if mark.name in names]
        _bars(axes, index, group.name, [(mark.value, names.index(mark.name) + aside, mark) for mark in shown], "x")
    axes.set_yticks(range(len(names)), [printable(name, 44) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(figure.axis)
    _finish(figure, canvas, axes)


def _along(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    """Draw marks along numbers of devices with the line of the law, or along time, which is in days since 1970."""
    timed = figure.along.startswith("time")
    canvas.set_figheight(3.4 + 0.2 * len(figure.groups))
    places = sorted({mark.x for group in figure.groups for mark in group.marks})
    for index, group in enumerate(figure.groups):
        aside = 1.02 ** (0 if timed else index - (len(figure.groups) - 1) / 2)
        _bars(axes, index, group.name, [(mark.x * aside, mark.value, mark) for mark in group.marks], "y")
        beyond = [mark.x * aside for mark in group.marks if figure.most and mark.high and mark.high > figure.most]
        if figure.most and beyond:
            tops = [figure.most] * len(beyond)
            axes.plot(beyond, tops, "^", color=COLOURS[index % len(COLOURS)], markersize=7, clip_on=False)
        if group.law:
            x, y = zip(*group.law, strict=True)
            axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)], linewidth=1.2)
    if timed:
        axes.xaxis.axis_date("UTC")
        if len(places) == 1:  # an axis of years otherwise
            axes.set_xlim(places[0] - 0.5, places[0] + 0.5)
    else:
        axes.set_xscale("log")
        axes.set_xticks(places, [number(place) for place in places])
        axes.set_xlim(places[0] / 1.2, places[-1] * 1.2)
    if figure.node is not None:
        axes.axvline(figure.node, color=_INK, linewidth=0.8, linestyle=":")
        axes.text(figure.node, 0.99, " several nodes", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel=figure.along, ylabel=figure.axis)
    _finish(figure, canvas, axes)


def _bars(axes: Axes, index: int, name: str, shown: list[tuple[float, float, Mark]], way: str) -> None:
    """Draw marks at (x, y) with their intervals along `way`; without an interval there is no bar."""
    lows = [max(0.0, mark.value - mark.low) if mark.low is not None else 0.0 for *_, mark in shown]
    highs = [max(0.0, mark.high - mark.value) if mark.high is not None else 0.0 for *_, mark in shown]
    bars: dict[str, Any] = {f"{way}err": [lows, highs]}
    axes.errorbar(
        [x for x, *_ in shown],
        [y for _, y, _ in shown],
        **bars,
        fmt=MARKERS[index % len(MARKERS)],
        color=COLOURS[index % len(COLOURS)],
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label=f"\N{ZERO WIDTH SPACE}{printable(name, 70)}",  # a legend leaves out what begins with _
    )


def _finish(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    """Scale, line of reference, grid and legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values, line, limit = (
        (axes.yaxis, axes.axhline, axes.set_ylim) if figure.along else (axes.xaxis, axes.axvline, axes.set_xlim)
    )
    if figure.reference is not None:
        line(figure.reference, color=_INK, linewidth=0.8, linestyle=":")
    if figure.log:
        axes.set(**{"yscale" if figure.along else "xscale": "log"})
        values.set_major_locator(LogLocator(subs=(1, 2, 5)))
        values.set_minor_locator(NullLocator())
    else:
        limit(0, figure.most)
    values.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(axis="y" if figure.along else "x", color=_INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(length=0)
    if len(figure.groups) > 1:
        canvas.legend(loc="outside lower left", frameon=False, fontsize=8)
