"""Figures of one run, or of two in one figure: power, step times, loss, memory, phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from app.charts.base import COLOURS, DASHES, GREY, PATTERNS, SYMBOLS, faint, frame, text
from app.onerun import Opened, phases
from bench.figures.metrics import metrics
from bench.record import Quality

_INK, _WINDOW, _OTHERS = COLOURS[:6], COLOURS[4], (*COLOURS[:4], COLOURS[5])
OUTLIER = 1.5
"""A step that takes so many times the median is marked."""
NAMED = 0.05
"""Share of a run that a phase must take for its name to be written into the figure; hovering tells all of them."""


def power_chart(
    power: Mapping[str, Sequence[tuple[float, float]]], spans: Sequence[tuple[str, float, float]] = ()
) -> go.Figure:
    """Draw watts over seconds since the start, a line a device, and the phases of the run; the window is shaded more."""
    figure = go.Figure(layout=frame(400))
    for index, (name, points) in enumerate(power.items()):
        look = {"color": _INK[index % len(_INK)], "dash": DASHES[index % len(DASHES)], "width": 2}
        few = "lines+markers" if len(points) < 20 else "lines"
        marker = {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7}
        x, y = [t for t, _ in points], [w for _, w in points]
        figure.add_scatter(x=x, y=y, mode=few, line=look, marker=marker, name=text(name))
    total = max((end for *_, end in spans), default=0.0)
    for index, (name, start, end) in enumerate(spans):
        shade, label = faint(GREY, 0.08 + 0.1 * (index % 2)), {"text": text(name), "textangle": -90}
        if name == "steady":
            shade, label = faint(_WINDOW, 0.25), {"text": "measured window", "textposition": "top center"}
        label = label if end - start >= NAMED * total else {}
        figure.add_vrect(x0=start, x1=end, fillcolor=shade, line_width=0, layer="below", label=label)
    figure.update_xaxes(title="time since the start of the run [s]")
    top = max((watts for points in power.values() for _, watts in points), default=0) or 1
    return figure.update_yaxes(title="power [W]", range=[0, 1.15 * top])


def steps_chart(runs: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw the time of each step of runs: of the warm-up in grey and open, outliers as crosses, the median as a line."""
    figure = go.Figure(layout=frame(360))
    for index, (name, steps) in enumerate(runs.items()):
        colour, symbol, head = _INK[index], SYMBOLS[index], f"{text(name)}: " * (len(runs) > 1)
        known = steps.dropna(subset="seconds")
        inside = known[known["window"]]
        middle = inside["seconds"].median()
        far = inside["seconds"] > OUTLIER * middle
        parts = [("step", inside[~far], symbol, colour), (f"over {OUTLIER} × median", inside[far], "x", colour)]
        for kind, part, mark, ink in (*parts, ("warm-up", known[~known["window"]], f"{symbol}-open", GREY)):
            if len(part):
                marker = {"symbol": mark, "color": ink, "size": 8 if len(known) < 300 else 4}
                figure.add_scatter(x=part["step"], y=part["seconds"], mode="markers", marker=marker, name=head + kind)
        if len(inside):
            ends, line = [inside["step"].min(), inside["step"].max()], {"color": colour, "dash": DASHES[index]}
            name = f"{head}median of the window {middle:.4g} s"
            figure.add_scatter(x=ends, y=[middle, middle], mode="lines", line=line, name=name)
    figure.update_xaxes(title="step of the training")
    return figure.update_yaxes(title="time of a step [s]", rangemode="tozero")


def loss_chart(steps: pd.DataFrame, quality: Sequence[Quality] = ()) -> go.Figure:
    """Draw the loss of each step, and the loss on held-out samples, with the accuracy in percent beside it."""
    figure = go.Figure(layout=frame(360))
    known = steps.dropna(subset="loss")
    if len(known):
        figure.add_scatter(x=known["step"], y=known["loss"], mode="lines", line_color=_INK[0], name="training loss")
    if quality:
        x, y = [point.step for point in quality], [point.loss for point in quality]
        told = ["" if point.accuracy is None else f"{100 * point.accuracy:.3g} % right" for point in quality]
        look = {"mode": "markers+text", "textposition": "top left", "name": "loss on held-out samples"}
        figure.add_scatter(x=x, y=y, text=told, marker={"size": 11, "symbol": "square", "color": _INK[1]}, **look)
    return figure.update_xaxes(title="step of the training").update_yaxes(title="loss")


def memory_chart(peaks: Sequence[int], expected: int | None = None, limit: float | None = None) -> go.Figure:
    """Draw the peak of memory of each rank in MB, what was estimated of it, and what a rank may take."""
    figure = go.Figure(layout=frame(280) | {"showlegend": False})
    mb = [peak / 1e6 for peak in peaks]
    ranks = [f"rank {rank}" for rank in range(len(peaks))]
    figure.add_bar(orientation="h", y=ranks, x=mb, marker_color=_INK[0], text=[f"{x:.4g}" for x in mb])
    for value, name, dash, place in ((expected, "~ estimated", "dot", "top"), (limit, "limit", "dash", "bottom")):
        if value is not None:
            note = {"annotation_text": f"{name} {value / 1e6:.4g} MB", "annotation_position": place}
            figure.add_vline(x=value / 1e6, line_dash=dash, line_color=_INK[1], **note)
    return figure.update_xaxes(title="peak of memory [MB]", rangemode="tozero").update_yaxes(autorange="reversed")


def phases_chart(phases: pd.DataFrame) -> go.Figure:
    """Draw where time and energy went, in percent of the run, a bar each, phases told apart by colour and pattern."""
    figure = go.Figure(layout=frame(300) | {"barmode": "stack"})
    titles = {"seconds": "time", "energy_joules": "energy, measured", "energy_joules_estimated": "~ energy, estimated"}
    shown = {name: title for name, title in titles.items() if phases[name].notna().any()}
    sums = phases.groupby("phase", sort=False)[list(shown)].sum()
    for index, (phase, values) in enumerate(sums.iterrows()):
        x = [100 * values[name] / sums[name].sum() for name in shown]
        told = [f"{values[name]:.4g} {'s' if name == 'seconds' else 'J'}" for name in shown]
        name, marker = text(phase), {"color": _OTHERS[index % 5], "pattern": {"shape": PATTERNS[1 + index % 3]}}
        if phase == "steady":
            name, marker = "measured window", {"color": _WINDOW}
        bar = {"orientation": "h", "y": list(shown.values()), "x": x, "marker": marker, "hovertext": told}
        figure.add_bar(**bar, name=name, hovertemplate="%{fullData.name}: %{hovertext}, %{x:.3g} %<extra></extra>")
    return figure.update_xaxes(title="share of the run [%]", range=[0, 100]).update_yaxes(autorange="reversed")


Drawn = tuple[str, str, go.Figure, str]
"""Heading, name, figure, and what it shows in words."""


def of_run(one: Opened) -> Iterator[Drawn]:
    """Draw what is known of a run."""
    if one.power:
        said = "Power over the run, by device; phases are shaded, the measured window most. ~ marks a model's estimate."
        yield "Power", "power", power_chart(one.power, one.spans), said
    if len(one.steps):
        said = f"Time of each step of rank 0; crosses took more than {OUTLIER} times the median of the window."
        yield "Step times", "steps", steps_chart({"": one.steps}), said
    result = one.result
    if one.record is None or result is None:
        return
    if one.steps["loss"].notna().any() or result.quality:
        said = "Loss of each step, and quality on held-out samples."
        yield "Learning", "loss", loss_chart(one.steps, result.quality), said
    if result.phases:
        said = "Shares of the phases in the time of the run, and in its energy."
        yield "Where time and energy went", "phases", phases_chart(phases(result)), said
    if result.peak_memory_bytes:
        limit = metrics(one.record).get("memory_available_bytes")
        said = "Peak of each rank: tensors on a GPU, or what a CPU process grew by. The estimate is from shapes alone."
        figure = memory_chart(result.peak_memory_bytes, result.memory_estimated_bytes, limit)
        yield "Memory", "memory", figure, said


def of_two(ones: Mapping[str, Opened]) -> Iterator[Drawn]:
    """Draw step times and power of two runs in one figure each."""
    if any(len(one.steps) for one in ones.values()):
        figure = steps_chart({name: one.steps for name, one in ones.items()})
        yield "Step times", "steps-of-two", figure, "Time of each step of both runs."
    power = {f"{name}: {device}": points for name, one in ones.items() for device, points in one.power.items()}
    if power:
        yield "Power", "power-of-two", power_chart(power), "Power of both runs, each since its own start, by device."
