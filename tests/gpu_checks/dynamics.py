"""Checks of how the sensor follows power that changes: part-time sampling and step response."""

import time
from statistics import mean, median

from bench.meters.meter import Reading
from bench.meters.trace import Trace
from tests.gpu_checks.figures import at_duty, duty, hold_mean, rise_seconds, spread
from tests.gpu_checks.session import AVERAGE, COUNTER, INSTANT, LoadFailed, Nvml, Outcome

PHASES = 8
RATIOS = {"1/2": 1 / 2, "2/3": 2 / 3, "3/4": 3 / 4, "4/5": 4 / 5, "6/5": 6 / 5, "5/4": 5 / 4, "4/3": 4 / 3}
DUTY = 0.25
CONTINUOUS = 0.03


def _watched(session, programme, wanted, pause):
    """Let the GPU draw waves and read fields meanwhile; return what the child says of each wave, and the rows."""
    waves, rows = [], []
    with session.load("waves", programme=programme) as load, Nvml(session.uuid) as nvml:
        end = time.monotonic() + 2 * sum(wave["seconds"] for wave in programme) + 30
        while len(waves) < len(programme):
            rows += nvml.watch(0.2, wanted, pause)[0]
            if load.line_waits():
                waves.append(load.answer(1))
            if time.monotonic() > end or (load.process.poll() is not None and not load.line_waits()):
                raise LoadFailed("the square wave ended early")
        rows += nvml.watch(0.3, wanted, pause)[0]
    return waves, rows


def _watts(uuid, rows, wave):
    """Return mean watts of a wave by counter, by INSTANT, and by INSTANT read only every 100 ms."""
    t0, t1 = wave["start_ns"], wave["end_ns"]
    counter = [
        Reading(t_ns=t, wall_ns=0, source="nvml", component="gpu", device=uuid, energy_uj=values[0] * 1000)
        for t, values in rows
        if values[0] is not None
    ]
    found = Trace(counter).energy(t0, t1)
    instant = [(t, values[1] / 1e3) for t, values in rows if values[1] is not None]
    coarse, last = [], 0
    for t, watts in instant:
        if t - last >= 99_000_000:
            coarse.append((t, watts))
            last = t
    return found[0].power_watts_mean if found else None, hold_mean(instant, t0, t1), hold_mean(coarse, t0, t1)


def v5(session, seconds):
    """Part-time test: does the energy of a square wave depend on where it lies between the updates of the counter?"""
    out = Outcome()
    period = (session.earlier.get("V2", {}).get("figures") or {}).get("counter_period_seconds") or 0.1
    waves = {"idle": (0.1, 0.0, 0.0), "full": (0.1, 1.0, 0.0)}
    waves |= {f"phase {i}/{PHASES}": (0.1, DUTY, i / PHASES) for i in range(PHASES)}
    waves |= {f"period {name}": (period * ratio, DUTY, 0.0) for name, ratio in RATIOS.items()}
    length = seconds / len(waves)
    programme = [{"period": p, "duty": d, "phase": f, "seconds": length} for p, d, f in waves.values()]
    said, rows = _watched(session, programme, (COUNTER, (INSTANT, 0)), 0.005)
    figures = {}
    for name, wave in zip(waves, said, strict=True):
        counter, instant, coarse = _watts(session.uuid, rows, wave)
        real = duty(wave["bursts"], wave["start_ns"], wave["end_ns"])
        figures[name] = {
            "counter_watts": counter,
            "instant_watts": instant,
            "instant_100ms_watts": coarse,
            "event_duty": wave["event_duty"],
            "host_duty": real,
        }
    out.figures = {"waves": figures, "seconds_each": length, "counter_continuous": None}
    if any(f["counter_watts"] is None for f in figures.values()):
        out.add("V5 square wave", "not every wave has energy by the counter", False, "energy")
        return out
    low, high = figures["idle"]["counter_watts"], figures["full"]["counter_watts"]
    phases = [f for name, f in figures.items() if name.startswith("phase")]
    wanted = mean(f["event_duty"] for f in phases)
    for what, key in (("counter", "counter_watts"), ("INSTANT", "instant_watts"), ("at 100 ms", "instant_100ms_watts")):
        known = [at_duty(f[key], low, f["event_duty"], wanted) for f in phases if f[key] is not None]
        varies = spread(known) if len(known) == PHASES else None
        out.figures[f"phase_spread_{key}"] = varies
        text = "not read" if varies is None else f"{varies:.2%} of {mean(known):.1f} W between {PHASES} phases"
        if what == "counter":
            out.figures["counter_continuous"] = varies <= CONTINUOUS
            out.add("V5 counter by phase", text, varies <= CONTINUOUS, "at most 3 %: continuous")
        else:
            out.add(f"V5 INSTANT by phase{'' if what == 'INSTANT' else ', ' + what}", text)
    periods = [f for name, f in figures.items() if name.startswith("period")]
    known = [at_duty(f["counter_watts"], low, f["event_duty"], wanted) for f in periods]
    out.add("V5 counter by period", f"{spread(known):.2%} between {len(known)} periods")
    model = low + wanted * (high - low)
    text = (
        f"{mean(f['counter_watts'] for f in phases):.1f} W, duty {wanted:.1%} of {low:.0f} to {high:.0f} W: {model:.1f}"
    )
    out.add("V5 counter and duty", text)
    return out


def v9(session, seconds):
    """Step response of AVERAGE and INSTANT."""
    out = Outcome()
    programme = [{"period": 4.0, "duty": 0.5, "phase": 0.0, "seconds": max(8.0, seconds)}]
    (wave,), rows = _watched(session, programme, ((AVERAGE, 0), (INSTANT, 0)), 0.003)
    for place, (name, low, high) in enumerate((("AVERAGE", 0.5, 1.3), ("INSTANT", 0.0, 0.3))):
        samples = [(t, values[place]) for t, values in rows if values[place] is not None]
        rises = [rise_seconds(samples, start, end) for start, end in wave["bursts"]]
        known = [rise for rise in rises if rise is not None]
        if not samples or not known:
            out.add(f"V9 rise of {name}", "not supported here" if not samples else "no step was seen", None)
            continue
        text = f"median {median(known):.3f} s from 10 to 90 % ({len(known)} steps)"
        out.add(f"V9 rise of {name}", text, low <= median(known) <= high, f"{low:g} to {high:g} s")
        out.figures[f"{name.lower()}_rise_seconds"] = [round(rise, 4) for rise in known]
    return out
