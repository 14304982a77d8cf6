"""Figures of one run, or of two in one figure: power, step times, loss, memory, phases. Shares no data with the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import pandas as pd
import plotly.graph_objects as go

from app.charts.base import COLOURS, DASHES, GREY, PATTERNS, SYMBOLS, faint, frame, text
from app.onerun import Opened, phases
from bench.metrics import metrics

_INK = COLOURS[:6]
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
        window = name == "steady"
        shade = faint(COLOURS[4] if window else GREY, 0.25 if window else 0.08 + 0.1 * (index % 2))
        label = {"text": "measured window" if window else text(name), "textangle": 0 if window else -90}
        figure.add_vrect(x0=start, x1=end, fillcolor=shade, line_width=0, layer="below")
        if window or end - start >= NAMED * total:
            side = "top" if window else "middle"
            figure.add_shape(
                type="rect",
                x0=start,
                x1=end,
                y0=0,
                y1=1,
                yref="paper",
                line_width=0,
                label=label | {"textposition": f"{side} center"},
            )
    figure.update_xaxes(title="time since the start of the run [s]")
    return figure.update_yaxes(title="power [W]", rangemode="tozero")


def steps_chart(runs: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw the time of each step of runs: of the warm-up in grey and open, outliers as crosses, the median as a line."""
    figure = go.Figure(layout=frame(360))
    for index, (name, steps) in enumerate(runs.items()):
        colour, dash = _INK[index % len(_INK)], DASHES[index % len(DASHES)]
        known = steps.dropna(subset="seconds")
        inside = known[known["window"]]
        middle = median(inside["seconds"]) if len(inside) else float("nan")
        far = inside["seconds"] > OUTLIER * middle
        parts = [("step", inside[~far], SYMBOLS[index], colour), (f"over {OUTLIER} × median", inside[far], "x", colour)]
        parts.append(("warm-up", known[~known["window"]], f"{SYMBOLS[index]}-open", GREY))
        for kind, part, symbol, ink in parts:
            if len(part):
                marker = {"symbol": symbol, "color": ink, "size": 8 if len(known) < 300 else 4}
                label = f"{text(name)}: {kind}" if len(runs) > 1 else kind
                figure.add_scatter(x=part["step"], y=part["seconds"], mode="markers", marker=marker, name=label)
        if len(inside):
            ends = [inside["step"].min(), inside["step"].max()]
            line = {"color": colour, "dash": dash, "width": 2}
            label = f"{text(name)}: median" if len(runs) > 1 else "median of the window"
            figure.add_scatter(x=ends, y=[middle, middle], mode="lines", line=line, name=f"{label} {middle:.4g} s")
    figure.update_xaxes(title="step of the training")
    return figure.update_yaxes(title="time of a step [s]", rangemode="tozero")


def loss_chart(steps: pd.DataFrame, quality: Sequence[tuple[int, float, float | None]] = ()) -> go.Figure:
    """Draw the loss of each step, and loss and accuracy (right axis) on held-out samples where they were looked at."""
    figure = go.Figure(layout=frame(360))
    known = steps.dropna(subset="loss")
    if len(known):
        line = {"color": _INK[0], "width": 1.5}
        figure.add_scatter(x=known["step"], y=known["loss"], mode="lines", line=line, name="training loss")
    x, marker = [step for step, *_ in quality], {"size": 11, "symbol": "square", "color": _INK[1]}
    if x:
        losses = [loss for _, loss, _ in quality]
        figure.add_scatter(x=x, y=losses, mode="markers", marker=marker, name="loss on held-out samples")
    told = [(step, 100 * share) for step, _, share in quality if share is not None]
    if told:
        marker = marker | {"symbol": "diamond", "color": _INK[2]}
        name = "accuracy on held-out samples (right)"
        x, y = [step for step, _ in told], [share for _, share in told]
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, yaxis="y2")
        right = {
            "title": "accuracy [%]",
            "overlaying": "y",
            "side": "right",
            "range": [0, 105],
            "tickvals": [0, 25, 50, 75, 100],
            "showgrid": False,
        }
        figure.update_layout(yaxis2=right)
    figure.update_xaxes(title="step of the training")
    return figure.update_yaxes(title="loss", selector={"overlaying": None})


def memory_chart(peaks: Sequence[int], expected: int | None = None, limit: float | None = None) -> go.Figure:
    """Draw the peak of memory of each rank in MB, what was estimated of it, and what a rank may take."""
    figure = go.Figure(layout=frame(280) | {"showlegend": False})
    ranks = [f"rank {rank}" for rank in range(len(peaks))]
    mb = [peak / 1e6 for peak in peaks]
    figure.add_bar(orientation="h", y=ranks, x=mb, marker={"color": _INK[0]}, text=[f"{x:.4g}" for x in mb])
    for value, name, dash, place in ((expected, "~ estimated", "dot", "top"), (limit, "limit", "dash", "bottom")):
        if value is not None:
            figure.add_vline(x=value / 1e6, line_dash=dash, line_color=_INK[1])
            note = f"{name} {value / 1e6:.4g} MB"
            y, anchor = (1, "bottom") if place == "top" else (0, "bottom")
            figure.add_annotation(x=value / 1e6, y=y, yref="paper", yanchor=anchor, text=note, showarrow=False)
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(title="peak of memory [MB]", rangemode="tozero")


def phases_chart(phases: pd.DataFrame) -> go.Figure:
    """Draw where time and energy went, in percent of the run, a bar each, phases told apart by colour and pattern."""
    figure = go.Figure(layout=frame(300) | {"barmode": "stack"})
    titles = {"seconds": "time", "energy_joules": "energy, measured", "energy_estimated_joules": "~ energy, estimated"}
    shown = {name: title for name, title in titles.items() if phases[name].notna().any()}
    sums = phases.groupby("phase", sort=False)[list(shown)].sum()
    for index, (phase, values) in enumerate(sums.iterrows()):
        pattern = {"shape": PATTERNS[index // len(_INK) + index % 2 * 2]}
        x = [100 * values[name] / sums[name].sum() for name in shown]
        told = [f"{values[name]:.4g} {'s' if name == 'seconds' else 'J'}" for name in shown]
        marker = {"color": _INK[index % len(_INK)], "pattern": pattern}
        name = "measured window" if phase == "steady" else text(phase)
        bar = {"orientation": "h", "y": list(shown.values()), "x": x, "marker": marker, "hovertext": told}
        figure.add_bar(**bar, name=name, hovertemplate="%{fullData.name}: %{hovertext}, %{x:.3g} %<extra></extra>")
    return figure.update_xaxes(title="share of the run [%]", range=[0, 100]).update_yaxes(autorange="reversed")


Drawn = tuple[str, str, go.Figure, str]
"""Heading, name, figure, and what it shows in words."""


def of_run(one: Opened) -> Iterator[Drawn]:
    """Draw what is known of a run."""
    result = one.record.measurement if one.record is not None else None
    if one.power:
        said = "Power over the run, by device; phases are shaded, the measured window most. ~ marks a model's estimate."
        yield "Power", "power", power_chart(one.power, one.spans), said
    if len(one.steps):
        said = "Time of each step of rank 0; crosses took more than 1.5 times the median of the window."
        yield "Step times", "steps", steps_chart({"": one.steps}), said
    if one.steps["loss"].notna().any() or (result is not None and result.quality):
        quality = [(q.step, q.loss, q.accuracy) for q in result.quality] if result is not None else []
        yield "Learning", "loss", loss_chart(one.steps, quality), "Loss of each step, and quality on held-out samples."
    if one.record is None or result is None:
        return
    if result.phases:
        said = "Shares of the phases in the time of the run, and in its energy."
        yield "Where time and energy went", "phases", phases_chart(phases(one.record)), said
    if result.peak_memory_bytes:
        limit = metrics(one.record).get("memory_available_bytes")
        figure = memory_chart(result.peak_memory_bytes, result.memory_estimated_bytes, limit)
        said = (
            "Peak of each rank: of tensors on a GPU, or what a CPU process grew by. The estimate is from shapes alone."
        )
        yield "Memory", "memory", figure, said


def of_two(ones: Mapping[str, Opened]) -> Iterator[Drawn]:
    """Draw step times and power of two runs in one figure each."""
    if any(len(one.steps) for one in ones.values()):
        figure = steps_chart({name: one.steps for name, one in ones.items()})
        yield "Step times", "steps-of-two", figure, "Time of each step of both runs"
    power = {f"{name}: {device}": points for name, one in ones.items() for device, points in one.power.items()}
    if power:
        yield "Power", "power-of-two", power_chart(power), "Power of both runs over their time, by device"
