"""Scaling: measured times and the law that is chosen, what it predicts, what is lost, and which law does best."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analytics import laws, words
from analytics.amounts import counts
from analytics.curves import strategy_sentences
from analytics.frame import summary
from analytics.outlook import not_told, outlook, time_sentences
from analytics.scaling import SeriesFit, fit
from app import page
from app import scaling as asked
from app.charts import scaling as charts

ALL = "All series"
_outlook = st.cache_data(outlook, hash_funcs={SeriesFit: repr}, show_spinner=False, max_entries=1000)
_fit = st.cache_data(fit, show_spinner="Fitting ...", max_entries=50)
_summary = st.cache_data(summary, show_spinner=False, max_entries=50)
_left_out = st.cache_data(laws.left_out, show_spinner="Trying the laws ...", max_entries=1000)
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
        columns[title] = [words.between(*cell) for cell in cells]
    return pd.DataFrame(columns)


def _asked(names: list[str]) -> tuple[str, str, tuple[int, ...]]:
    """Let series, law and numbers of devices be chosen; no devices are the usual ones."""
    one, two, three = st.columns(3)
    series = one.selectbox("Series", [ALL, *names] if len(names) > 1 else names, key="series", bind="query-params")
    law = two.selectbox("Law (described below)", list(asked.FORMULAS), key="law", bind="query-params")
    given = three.text_input("Devices to predict", placeholder="1,2,4,8 or 8-64", key="devices", bind="query-params")
    try:
        return series, law, counts(given) if given else ()
    except ValueError as error:
        three.text(str(error))
        return series, law, ()


def _training(runs: pd.DataFrame, series: list[SeriesFit]) -> tuple[str, dict[str, float], float | None]:
    """Let a training be given; return what times are of, the samples by series, and FLOP a sample, if any."""
    one, two, three = st.columns(3)
    given: dict[str, Any] = {"min_value": 1.0, "max_value": 1e24, "value": None, "format": "%g", "bind": "query-params"}
    amount = one.number_input("Whole training: how many", key="n", placeholder="nothing: times are per sample", **given)
    unit = two.selectbox("of", ["samples", "tokens"], key="unit", bind="query-params")
    work = three.number_input("FLOP a sample of another model", key="flop", placeholder="the measured models", **given)
    if amount is None:
        return "one sample", {entry.name: 1.0 for entry in series}, work
    per = {entry.name: asked.tokens_per_sample(runs, entry) if unit == "tokens" else 1.0 for entry in series}
    if without := [name for name, each in per.items() if each is None]:
        page.lines([f"Samples of these have no tokens, so give samples: {'; '.join(without)}."])
    return f"{amount:,.15g} {unit}", {name: amount / each for name, each in per.items() if each}, work


def _times(lines: list[asked.Line], what: str, devices: tuple[int, ...]) -> None:
    st.subheader("Time against devices")
    st.caption(
        "Full marks are runs, open ones ~ estimated by the law, with the batch a device of the most devices. A dashed line "
        "is an extrapolation beyond what was measured. Bands (of up to four lines) are 80 % intervals of one more run."
    )
    unit = asked.unit(lines)
    page.figure(charts.time_chart(lines, unit, what), "times", "Time against devices: runs, the law, and beyond")
    table = asked.predictions(lines, devices)
    page.table(asked.shown(table, unit), "predictions", full=table)
    st.caption(
        "~: estimated by the law, with 80 % intervals. Efficiency: what a device does compared with the fewest measured "
        "devices. T = n/(d·v): the plain law, without losses."
    )
    if flags := asked.beware(table):
        page.lines(flags)


def _losses(series: list[SeriesFit], lines: list[asked.Line], law: str) -> None:
    st.subheader("Efficiency")
    st.caption(
        "What a device does compared with the fewest devices. Full marks are measured, with 95 % intervals of the repeats; "
        "open ones ~ estimated by the law for the largest model, with a band of 80 %."
    )
    several = [line for line in lines if len(line.series.devices) > 1]
    if several:
        page.figure(charts.efficiency_chart(series, several), "efficiency", "Efficiency against devices")
    else:
        st.text("Not known: no series ran on more than one number of devices.")
    st.subheader("What the law misses")
    st.caption("Above 0 the law says longer than it took. One mark a configuration, each of which it was fitted to.")
    many = [(entry, asked.residuals(entry, law)) for entry in series if len(entry.points) > 1]
    if many:
        page.figure(charts.residual_chart(many), "residuals", "By how much the law misses each configuration")
    else:
        st.text("Not known: one configuration always fits.")
    st.subheader("Where the time goes")
    split = [line for line in several if any(map(time_sentences, line.told))]
    if split:
        st.caption("Estimated by the law from how speed falls, for the largest model; not measured inside a step.")
        page.figure(charts.parts_chart(split), "parts", "Shares of the time of a step by devices")
        told = [(line.series, [*time_sentences(line.told[-1]), *not_told(line.series, law)]) for line in split]
        page.lines([f"{entry.name}: {' '.join(said)}" for entry, said in told])
    else:
        st.text("Not known: it takes the law step or power, and more than one number of devices.")


def _which_law(series: list[SeriesFit]) -> None:
    st.subheader("Which law")
    tried = [entry for entry in series if 1 < len(entry.points) <= asked.MOST_TRIED]
    misses = {e.name: {law: _left_out(e.observations(), law) or 0.0 for law in asked.FORMULAS} for e in tried}
    page.lines(list(asked.verdicts(series, misses)))
    page.table(asked.judged(series, misses), "laws")
    st.caption(
        "Each configuration is left out once and told by a law fitted to the others: the median of by how much it misses the "
        "time. The curves of Amdahl, Gustafson, USL and Ernest describe three or more numbers of devices; none predicts."
    )


def _series(series: list[SeriesFit]) -> None:
    """Say what the runs of each series say, in text only: names of series are those of the store."""
    for pair in (series[i : i + 2] for i in range(0, len(series), 2)):
        for column, entry in zip(st.columns(len(pair)), pair, strict=True):
            with column:
                page.lines([f"{entry.name}", *(f"• {sentence}" for sentence in entry.sentences())])


runs = page.execution(page.runs("Scaling"))
if bad := asked.not_well(runs):
    page.lines(bad)
    suite = {"suite": str(runs["suite"].iloc[0]), "execution": str(runs["execution"].iloc[0])}
    st.page_link("views/runs.py", label="All runs of this execution", query_params=suite)
table, found = _summary(runs), _fit(runs)
if found.series:
    choice, law, devices = _asked([entry.name for entry in found.series])
    chosen = [entry for entry in found.series if choice in (ALL, entry.name)]
    if len(chosen) > asked.MOST_SHOWN:
        st.caption(f"Shown are the first {asked.MOST_SHOWN} of {len(chosen):,} series. Choose another above to see it.")
        chosen = chosen[: asked.MOST_SHOWN]
    what, samples, work = _training(runs, chosen)
    page.lines([*words.in_short(chosen), *words.LAW, *map(words.gain_sentence, found.gains)])
    lines = asked.lines(chosen, lambda e, flops: _outlook(e, asked.wanted(e, devices), law, flops), samples, work)
    if lines:
        _times(lines, what, devices)
    _losses(chosen, asked.largest(lines), law)
    if said := strategy_sentences(table):
        page.lines(said)
    _which_law(chosen)
    with st.expander("Series by series", expanded=len(chosen) <= 2):
        _series(chosen)
else:
    page.lines(found.sentences())
if not table.empty:
    st.subheader("Configurations")
    st.caption("Geometric means of the repeats with 95 % intervals; without repeats there is no interval.")
    page.table(_shown(table), "configurations", full=table)
