"""Scaling: measured times, what the law predicts, what is lost, and how well the law holds."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analytics import text
from analytics.amounts import counts
from analytics.judge.matched import Changes
from analytics.law.outlook import outlook
from analytics.law.series import SeriesFit, fit
from analytics.runs.frame import summary
from analytics.say import law as law_words
from analytics.say.law import time_sentences, unidentified, unseen_sentences
from app import page
from app import scaling as asked
from app.charts import scaling as charts
from app.charts.base import plain

ALL = "All series"
_outlook = st.cache_data(outlook, hash_funcs={SeriesFit: repr}, show_spinner=False, max_entries=1000)
_fit = st.cache_data(fit, show_spinner="Fitting ...", max_entries=50)
_summary = st.cache_data(summary, show_spinner=False, max_entries=50)
_unseen = st.cache_data(
    unseen_sentences, hash_funcs={SeriesFit: repr}, show_spinner="Judging the law ...", max_entries=1000
)
_precisions: Any = st.cache_data(
    lambda runs: law_words.precision_sentences(Changes(runs)), show_spinner=False, max_entries=50
)
TABLE = {
    "name": ("Configuration", None),
    "repeats": ("Repeats", None),
    "samples_per_second": ("Samples/s", 1.0),
    "tokens_per_second": ("Tokens/s", 1.0),
    "joules_per_sample": ("J/sample, measured", 1.0),
    "joules_per_sample_estimated": ("J/sample, estimated by a model", 1.0),
    "emissions_kg_per_million_tokens": ("g CO2e per million tokens", 1000.0),
    "emissions_basis": ("CO2e from energy", None),
    "cost_usd_per_million_tokens": ("USD per million tokens", 1.0),
    "peak_memory_bytes": ("Peak memory [MB]", 1e-6),
    "loss_last": ("Last loss", 1.0),
    "flags": ("Flags", None),
}


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the summary as text with intervals, without columns that nothing is known of."""
    columns: dict[str, Any] = {}
    for name, (title, factor) in TABLE.items():
        if table[name].isna().all() or (table[name].astype("str") == "").all():
            continue
        if factor is None:
            columns[title] = table[name]
            continue
        low, high = (
            table.get(name + tail, pd.Series(index=table.index, dtype="float64")) for tail in ("_low", "_high")
        )
        cells = zip(table[name] * factor, low * factor, high * factor, strict=True)
        columns[title] = [text.between(*cell) for cell in cells]
    return pd.DataFrame(columns)


def _asked(names: list[str]) -> tuple[str, tuple[int, ...]]:
    """Let series and numbers of devices be chosen; no devices are the usual ones."""
    one, two = st.columns(2)
    series = one.selectbox("Series", [ALL, *names] if len(names) > 1 else names, key="series", **page.BOUND)
    given = two.text_input("Devices to predict", placeholder="1,2,4,8 or 8-64", key="devices", **page.BOUND)
    try:
        return series, counts(given) if given else ()
    except ValueError as error:
        two.text(str(error))
        return series, ()


def _training(runs: pd.DataFrame, series: list[SeriesFit]) -> tuple[str, dict[str, float], float | None]:
    """Let a training be given; return what times are of, the samples by series, and FLOP a sample, if any."""
    one, two, three = st.columns(3)
    given: dict[str, Any] = {"min_value": 1.0, "max_value": 1e24, "value": None, "format": "%g"} | page.BOUND
    amount = one.number_input("Whole training: how many", key="n", placeholder="nothing: times are per sample", **given)
    unit = two.selectbox("of", ["samples", "tokens"], key="unit", **page.BOUND)
    work = three.number_input("FLOP a sample of another model", key="flop", placeholder="the measured models", **given)
    if amount is None:
        return "one sample", {entry.name: 1.0 for entry in series}, work
    per = {entry.name: asked.tokens_per_sample(runs, entry) if unit == "tokens" else 1.0 for entry in series}
    if without := [name for name, each in per.items() if each is None]:
        page.lines([f"Samples of these have no tokens, so give samples: {'; '.join(without)}."])
    return f"{amount:,.15g} {unit}", {name: amount / each for name, each in per.items() if each}, work


def _times(lines: list[asked.Line], what: str, devices: tuple[int, ...]) -> None:
    st.subheader("Scaling")
    st.caption(
        "Full marks are runs; open ones are ~ estimated by the law, with the batch per device of the largest number of "
        "devices. A dashed line is extrapolated. Bands (of up to four lines) are 80 % intervals of one more run."
    )
    unit = asked.unit(lines)
    page.figure(charts.time_chart(lines, unit, what), "times", "Time by devices: runs, the law, and beyond")
    table = asked.predictions(lines, devices)
    page.table(asked.shown(table, unit), "predictions", full=table)
    st.caption(
        "~: estimated by the law, with 80 % intervals. Efficiency: speed per device relative to the fewest measured devices. "
        "T = n / (d · v): the plain law, without losses."
    )
    if limits := asked.limits(table):
        page.lines(limits)


def _losses(series: list[SeriesFit], lines: list[asked.Line]) -> None:
    st.subheader("Efficiency")
    st.caption(
        "Speed per device relative to the fewest devices. Full marks are measured, with 95 % intervals of the repeats; "
        "open ones are ~ estimated by the law for the largest model, with a band of 80 %."
    )
    several = [line for line in lines if len(line.series.devices) > 1]
    if several:
        page.figure(charts.efficiency_chart(series, several), "efficiency", "Efficiency by devices")
    else:
        st.text("Unknown: no series ran on more than one number of devices.")
    st.subheader("Residuals")
    st.caption("One mark per configuration. Above 0 the law predicts longer than measured.")
    many = [(entry, asked.residuals(entry)) for entry in series if len(entry.points) > 1]
    if many:
        page.figure(charts.residual_chart(many), "residuals", "Error of the law for each configuration")
        tried = [entry for entry in series if len(entry.points) <= asked.MOST_TRIED]
        page.lines([f"{entry.name}: {line}" for entry in tried for line in _unseen(entry)])
    else:
        st.text("Unknown: one configuration always fits.")
    st.subheader("Where the time goes")
    split = [line for line in several if any(map(time_sentences, line.predictions))]
    if split:
        st.caption("Estimated by the law from how speed falls, for the largest model; not measured inside a step.")
        page.figure(charts.parts_chart(split), "parts", "Shares of the time of a step by devices")
        words = [(line.series, [*time_sentences(line.predictions[-1]), *unidentified(line.series)]) for line in split]
        page.lines([f"{entry.name}: {' '.join(sentences)}" for entry, sentences in words])
    else:
        st.text("Unknown: it takes more than one number of devices.")


def _series(series: list[SeriesFit]) -> None:
    """Say what the runs of each series say, in text only: names of series are those of the store."""
    for pair in (series[i : i + 2] for i in range(0, len(series), 2)):
        for column, entry in zip(st.columns(len(pair)), pair, strict=True):
            with column:
                page.lines([f"{entry.name}", *(f"• {sentence}" for sentence in law_words.series_sentences(entry))])


def main() -> None:
    """Show the page."""
    runs = page.execution(page.runs("Scaling"))
    if bad := asked.not_well(runs):
        page.lines(bad)
        page.link("runs", "All runs of this execution", suite=str(runs["suite"].iloc[0]))
    table, found = _summary(runs), _fit(runs)
    if found.series:
        choice, devices = _asked([entry.name for entry in found.series])
        chosen = [entry for entry in found.series if choice in (ALL, entry.name)]
        if len(chosen) > asked.MOST_SHOWN:
            st.caption(
                f"Shown are the first {asked.MOST_SHOWN} of {len(chosen):,} series. Choose another above to see it."
            )
            chosen = chosen[: asked.MOST_SHOWN]
        what, samples, work = _training(runs, chosen)
        headline = law_words.headline(chosen) or "What more devices bring cannot be told: it takes repeats."
        page.answer(plain(headline), *map(plain, _precisions(runs)))
        lines = asked.lines(chosen, lambda e, flops: _outlook(e, asked.wanted(e, devices), flops), samples, work)
        if lines:
            _times(lines, what, devices)
        _losses(chosen, asked.largest(lines))
        if sentences := law_words.step_sentences(table):
            page.lines(sentences)
        with st.expander("Series by series", expanded=len(chosen) <= 2):
            _series(chosen)
    else:
        page.lines(law_words.fit_sentences(found))
    with st.expander("How this was computed"):
        st.text("\n".join(law_words.LAW))
    if not table.empty:
        st.subheader("Configurations")
        st.caption("Geometric means of the repeats with 95 % intervals; without repeats there is no interval.")
        page.table(_shown(table), "configurations", full=table)
