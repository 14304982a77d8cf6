"""How fast d devices train together: a law of speed fitted to measured configurations, with calibrated intervals.

The speed of d devices is d · v · E. One device alone has speed v, and E is the share of it that is left when they train
together. The plain law T = n / (d · v) is the reference: E is 1 and v is constant. The fit is made on the logarithm of
speed / d, since errors of times are factors. The law with losses says what a step loses:

    1 / E = (1 + (c (g - 1) / g + a log2(N) / n^k) / u^k + t / b + h / n) · d^p

with d devices on N nodes of g, u the samples that a device sees between two synchronisations, b those of one pass, n the
work of a sample; u, b and n relative to their geometric means over the table. c is the collective in a node (a ring of g
moves 2 (g - 1) / g of the bytes), a what each doubling of the nodes adds, k how well more work hides both, t what a pass
costs whatever its size, h how much slower small models are, p what is left over.

Around the law goes a Brownian motion over log2 d and log2 n: an extrapolation starts from the nearest measured
configurations, and its interval grows with every doubling. Single configurations have noise with heavy tails (Student's t).
v is integrated out in closed form, the rest by adaptive importance sampling (Cappé et al., Journal of Computational and
Graphical Statistics 13, 2004) from priors that are wide, and the same for every machine. How well that predicts published
tables is shown by `python -m tests.published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from scipy.stats import norm, qmc

from analytics.interval import Interval
from analytics.judge.stats import REACH

Array = np.ndarray[Any, np.dtype[np.float64]]

PRIORS: Mapping[str, tuple[float, float]] = {
    "collective": (float(np.log(0.08)), 1.25),
    "latency": (float(np.log(0.02)), 1.0),
    "hiding": (-1.2, 1.0),
    "fixed": (float(np.log(0.03)), 2.5),
    "small": (float(np.log(0.1)), 1.5),
    "leftover": (float(np.log(0.004)), 1.0),
}
"""Median and standard deviation of the logarithm of each parameter (c, a, k, t, h, p); k by its logit."""
NOISE = 0.02
"""Standard deviation of the logarithm of the speed of a configuration beyond its repeats: other days, other hosts."""
DRIFT, SIZE_DRIFT = 0.02, 0.15
"""Standard deviation of what a law gets wrong, on logarithms, for a doubling of the devices, and of the work a sample."""
FREEDOM = 4.0
"""Degrees of freedom that are known of the scale of noise and drift before any data."""
IDENTIFIED = 0.3
USUAL_NODE = 8
"""Devices of a node where neither runs nor predictions name its size."""
_DRAWS, _ROUNDS = 1024, 6
_SMALLEST, _LARGEST = 1e-60, 1e60
_MIXED = 25_000
"""Points of the distribution of a prediction, of which quantiles are taken."""
COVARIATES = ("devices", "num_nodes", "work", "batch_size_per_device", "samples_per_device")
_RELATIVE = COVARIATES[2:]


class LawError(ValueError):
    """A table that no law can be fitted to or asked about; the message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Parameter(Interval):
    """Median and 80 % interval of a posterior; `shrinkage` is the share by which the data narrow the prior variance."""

    shrinkage: float = field(kw_only=True)

    @property
    def identified(self) -> bool:
        """Whether the data narrow it clearly."""
        return self.shrinkage >= IDENTIFIED


@dataclass(frozen=True)
class _Points:
    """Configurations as arrays: d, N, and u, b, n relative to the reference of the fit."""

    d: Array
    nodes: Array
    n: Array
    b: Array
    u: Array

    @property
    def places(self) -> tuple[Array, Array]:
        return np.log2(self.d), np.log2(self.n)


def _numbers(table: pd.DataFrame, name: str, what: str, low: float = _SMALLEST) -> Array:
    try:
        values = pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise LawError(f"{what}: column {name!r} holds what is not a number ({error})") from error
    everywhere = name in ("devices", "speed")
    outside = ~((values >= low) & (values <= _LARGEST)) & (everywhere | ~np.isnan(values))
    if outside.any():
        rows = ", ".join(f"row {i}: {values[i]:g}" for i in np.flatnonzero(outside)[:3])
        where = "everywhere" if everywhere else "or absent"
        raise LawError(f"{what}: column {name!r} must be positive and finite {where} ({rows})")
    return values


def _covariates(table: pd.DataFrame, what: str) -> dict[str, Array]:
    if "devices" not in table or table.empty:
        raise LawError(f"{what} needs one row or more with the column 'devices'; it has {list(table.columns)[:12]}")
    absent = np.full(len(table), np.nan)
    out = {name: _numbers(table, name, what) if name in table else absent for name in COVARIATES}
    if (out["devices"] < 1).any():
        raise LawError(f"{what}: fewer than one device")
    return out


def _theta(z: Array) -> dict[str, Array]:
    """Parameters (draws, 1) from standard normal z (draws, parameters); those of the plain law, without z, are 0."""
    if not z.shape[1]:
        return {name: np.zeros((len(z), 1)) for name in PRIORS}
    x = {name: centre + spread * z[:, i : i + 1] for i, (name, (centre, spread)) in enumerate(PRIORS.items())}
    return {name: special.expit(x[name]) if name == "hiding" else np.exp(x[name]) for name in PRIORS}


def _parts(theta: dict[str, Array], x: _Points) -> dict[str, Array]:
    """What a step takes besides computing, relative to it: (draws, configurations) by the part of the law."""
    hidden = x.u ** -theta["hiding"]
    return {
        "collective": theta["collective"] * (1 - x.nodes / x.d).clip(0) * hidden,
        "latency": theta["latency"] * np.log2(x.nodes) * x.n ** -theta["hiding"] * hidden,
        "fixed": theta["fixed"] / x.b,
        "small": theta["small"] / x.n,
    }


def _loss(theta: dict[str, Array], x: _Points) -> Array:
    """log(1 / E), (draws, configurations)."""
    return np.log1p(sum(_parts(theta, x).values(), np.zeros((1, 1)))) + theta["leftover"] * np.log(x.d)


def _drift(a: _Points, b: _Points, origin: tuple[float, float]) -> Array:
    """Covariance of the Brownian motion between configurations: it is 0 at the origin."""
    out = np.zeros((len(a.d), len(b.d)))
    for spread, here, there, zero in zip((DRIFT, SIZE_DRIFT), a.places, b.places, origin, strict=True):
        ways = np.abs(here - zero)[:, None] + np.abs(there - zero) - np.abs(here[:, None] - there)
        out += spread**2 * ways / 2
    return out


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table of configurations: draws of its parameters with weights, and what prediction needs.

    The plain law has no parameters. `flags` are the limits of the data (keys of `say.law.FLAGS`).
    """

    parameters: dict[str, Parameter]
    flags: tuple[str, ...]
    measured: dict[str, Array] = field(repr=False)
    _state: dict[str, Any] = field(repr=False)

    @property
    def crossed(self) -> bool:
        """Whether runs used different numbers of nodes."""
        return bool(np.ptp(self.measured["num_nodes"]) > 0)

    @property
    def tells_nodes(self) -> bool:
        """Whether what nodes add differs, in these configurations, from anything that devices, batch and work add.

        It does not where each number of nodes comes with its own number of devices in a node, or with its own batch.
        """
        x: _Points = self._state["points"]
        others = np.column_stack([np.ones_like(x.d), 1 - x.nodes / x.d, 1 / x.b, 1 / x.n])
        whole = np.column_stack([others, np.log2(x.nodes)])
        return bool(np.linalg.matrix_rank(whole, 1e-3) > np.linalg.matrix_rank(others, 1e-3))

    def predict(self, at: pd.DataFrame, level: float = 0.8) -> pd.DataFrame:
        """Return median, `low` and `high` of the speed of one more configuration (all devices together), and `flags`.

        `at` has a row for each configuration: `devices`, and `num_nodes`, `work`, `batch_size_per_device`,
        `samples_per_device` where they differ from the geometric mean of the measured ones. Nodes without a number hold as
        many devices as the largest measured one, USUAL_NODE at least. The unit is that of the fitted `speed`; flags are
        separated by spaces. The interval is calibrated on published tables; the plain law has none (NaN) for one
        configuration. Raises LawError.
        """
        if not 0 < level < 1:
            raise LawError(f"a level lies between 0 and 1, got {level}")
        points = self._points(at)
        centre, spread = self._moments(points)
        state = self._state
        degrees = state["degrees"]
        each = max(25, _MIXED // len(state["weights"])) | 1  # odd: the middle one is the median
        offsets = special.stdtrit(degrees, (np.arange(each) + 0.5) / each) if degrees > 0 else np.zeros(1)
        found = (centre[:, None, :] + spread[:, None, :] * offsets[:, None]).reshape(-1, len(at))
        weights = np.repeat(state["weights"] / len(offsets), len(offsets))
        tails = [0.5, (1 - level) / 2, (1 + level) / 2]
        quantiles = np.exp(_quantiles(found, weights, tails)) * points.d
        if degrees <= 0:
            quantiles[1:] = np.nan
        columns = dict(zip(("speed", "low", "high"), quantiles, strict=True))
        return pd.DataFrame({**columns, "flags": self._flags(at, points)}, index=at.index)

    def draws(self, at: pd.DataFrame, size: int, seed: int = 0) -> Array:
        """Return `size` draws of the speeds of the rows of `at` (see `predict`), jointly: shape (size, rows)."""
        points, rng = self._points(at), np.random.default_rng(seed)
        state = self._state
        centre, _ = self._moments(points)
        which = rng.choice(len(state["weights"]), size=size, p=state["weights"])
        degrees = state["degrees"]
        if degrees <= 0:
            return np.asarray(np.exp(centre[which]) * points.d)
        scale = np.sqrt(state["scale"][which] * degrees / rng.chisquare(degrees, size))
        noise = rng.multivariate_normal(np.zeros(len(at)), self._covariance(points), size, method="eigh")
        return np.asarray(np.exp(centre[which] + scale[:, None] * noise) * points.d)

    def explain(self, at: pd.DataFrame) -> pd.DataFrame:
        """Return where the time of a step goes: shares that add up to 1, a row for each of `at` (see `predict`).

        Columns: `computing`, `collective`, `latency`, `fixed`, `small`, `leftover` (see the module); means of the posterior.
        With one batch size (model size), `fixed` (`small`) is not separable from computing and counts there.
        """
        points, theta = self._points(at), _theta(self._state["z"])
        parts = {"computing": np.ones((1, 1)), **_parts(theta, points)}
        for name, covariate in (("fixed", "batch_size_per_device"), ("small", "work")):
            if not np.nan_to_num(np.ptp(self.measured[covariate])) > 0:  # what is the same everywhere is a part of v
                parts["computing"] = parts["computing"] + parts[name]
                parts[name] = np.zeros((1, 1))
        within = sum(parts.values(), np.zeros((1, 1)))
        share = points.d ** -theta["leftover"]
        weights = self._state["weights"]
        out = {name: weights @ np.broadcast_to(part / within * share, share.shape) for name, part in parts.items()}
        out["leftover"] = weights @ (1 - share)
        return pd.DataFrame(out, index=at.index)

    def covariance(self, at: pd.DataFrame) -> Array:
        """Covariance of the logarithms of the speeds of the rows of `at`, without the noise of these rows themselves."""
        points, state = self._points(at), self._state
        centre, _ = self._moments(points)
        apart = centre - state["weights"] @ centre
        between = (apart * state["weights"][:, None]).T @ apart
        scale = float(state["weights"] @ state["scale"])
        return np.asarray(between + scale * (self._covariance(points) - NOISE**2 * np.eye(len(at))))

    def _points(self, at: pd.DataFrame) -> _Points:
        given = _covariates(at, "a prediction")
        counted = np.ceil(given["devices"] / _node_size(self.measured))
        nodes = np.where(np.isnan(given["num_nodes"]), counted, given["num_nodes"])
        reference = self._state["reference"]
        relative = {name: np.where(np.isnan(given[name]), 1.0, given[name] / reference[name]) for name in _RELATIVE}
        return _Points(given["devices"], np.minimum(nodes, given["devices"]), *relative.values())

    def _moments(self, points: _Points) -> tuple[Array, Array]:
        """Centre and scale of log(speed / d), (draws, rows), given each draw of the parameters."""
        state = self._state
        gain = state["inverse"] @ _drift(state["points"], points, state["origin"]) * state["drifts"]
        centre = state["v"][:, None] - _loss(_theta(state["z"]), points) + state["errors"] @ gain
        variance = np.diag(self._covariance(points))
        return centre, np.sqrt(np.outer(state["scale"], variance))

    def _covariance(self, points: _Points) -> Array:
        state = self._state
        across = _drift(state["points"], points, state["origin"]) * state["drifts"]
        own = _drift(points, points, state["origin"]) * state["drifts"] + NOISE**2 * np.eye(len(points.d))
        left = 1 - state["inverse"].sum(axis=0) @ across
        covariance = own - across.T @ state["inverse"] @ across + np.outer(left, left) / state["inverse"].sum()
        return np.asarray(covariance)

    def _flags(self, at: pd.DataFrame, points: _Points) -> list[str]:
        measured, given = self.measured, _covariates(at, "a prediction")
        low, high = measured["devices"].min(), measured["devices"].max()
        unknown = (low == high) & (points.d != low)
        found = {
            "devices_not_identified": unknown,
            "devices_beyond_reach": ~unknown & (points.d > REACH * high),
            "devices_below_measured": ~unknown & (points.d < low),
            "first_node_boundary": (points.nodes > 1) & (measured["num_nodes"].max() == 1),
            "nodes_not_identified": self._guessed_nodes(points),
            "work_outside_measured": _outside(given["work"], measured["work"]),
            "batch_outside_measured": _outside(given["samples_per_device"], measured["samples_per_device"])
            | _outside(given["batch_size_per_device"], measured["batch_size_per_device"]),
        }
        always = [name for name in self.flags if name != "devices_not_identified"]
        return [" ".join([*(name for name, rows in found.items() if rows[i]), *always]) for i in range(len(at))]

    def _guessed_nodes(self, points: _Points) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether a prediction rests on what nodes add while runs on several nodes do not tell it."""
        known, d = self.measured["num_nodes"], self.measured["devices"]
        if known.max() == 1 or self.tells_nodes:
            return np.zeros(len(points.d), dtype=bool)
        if not self.crossed:
            return np.asarray(points.nodes != known[0])
        return np.asarray(~((points.nodes[:, None] == known) & (points.d[:, None] == d)).any(axis=1))


def _outside(asked: Array, measured: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if np.isnan(measured).all():
        return np.zeros(len(asked), dtype=bool)
    return (asked < 0.999 * np.nanmin(measured)) | (asked > 1.001 * np.nanmax(measured))


def _quantiles(values: Array, weights: Array, tails: list[float]) -> Array:
    """Quantiles of weighted values (draws, rows): (tails, rows)."""
    order = np.argsort(values, axis=0)
    reached = np.cumsum(weights[order], axis=0)
    columns = range(values.shape[1])
    out = []
    for tail in tails:
        index = (reached < tail * reached[-1]).sum(axis=0).clip(max=len(values) - 1)
        out.append([values[order[index[column], column], column] for column in columns])
    return np.array(out)


def fit(table: pd.DataFrame, *, plain: bool = False, seed: int = 0) -> Fit:
    """Fit the law with losses, or the `plain` one, to configurations that differ in devices, work and batch only.

    Columns, one row a configuration: `devices`, `speed` (work a second of all devices, any one unit), and where known
    `num_nodes` (otherwise of USUAL_NODE devices), `work` (FLOP a sample), `batch_size_per_device`, `samples_per_device`
    (between two synchronisations), `spread` (standard deviation of the logarithm of `speed` by its repeats). Several rows
    of one configuration count as that many measurements. Raises LawError where no law can be fitted.
    """
    if "speed" not in table or table.empty:
        raise LawError(f"a law needs one row or more with 'devices' and 'speed'; there is {list(table.columns)[:12]}")
    for name in ("metric", "unit"):
        if name in table and table[name].nunique(dropna=False) > 1:
            raise LawError(f"column {name!r} mixes {', '.join(map(str, table[name].unique()[:4]))}: fit one at a time")
    measured = _covariates(table, "a fit")
    size = _node_size(measured)
    nodes = np.where(np.isnan(measured["num_nodes"]), np.ceil(measured["devices"] / size), measured["num_nodes"])
    measured["num_nodes"] = np.minimum(nodes, measured["devices"])
    reference = {name: _geometric_mean(measured[name]) for name in _RELATIVE}
    relative = [np.where(np.isnan(measured[name]), 1.0, measured[name] / reference[name]) for name in _RELATIVE]
    points = _Points(measured["devices"], measured["num_nodes"], *relative)
    spread = np.nan_to_num(_numbers(table, "spread", "a fit", low=0.0)) if "spread" in table else np.zeros(len(table))
    logs = np.log(_numbers(table, "speed", "a fit") / points.d)
    state = _sample(logs, points, NOISE**2 + spread**2, plain, seed) | {"reference": reference}
    flags = table_flags(measured["devices"], measured["work"])
    return Fit({} if plain else _posteriors(state), flags, measured, state)


def _node_size(measured: dict[str, Array]) -> float:
    """Devices of a node: those of the largest one that is known; USUAL_NODE at least where no run used several."""
    several = np.nanmax([1, *measured["num_nodes"]]) > 1
    return float(np.nanmax([1 if several else USUAL_NODE, *(measured["devices"] / measured["num_nodes"])]))


def _geometric_mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(np.exp(np.log(known).mean())) if len(known) else 1.0


def table_flags(devices: Array, work: Array) -> tuple[str, ...]:
    """Return the limits of a table of configurations (keys of `say.law.FLAGS`)."""
    d, n = np.log(devices), np.log(work)
    both = np.ptp(d) > 0 and np.nan_to_num(np.ptp(n)) > 1e-3
    limits = {
        "one_configuration": len(d) == 1,
        "devices_not_identified": np.ptp(d) == 0,
        "work_and_devices_confounded": bool(both) and abs(np.corrcoef(d, n)[0, 1]) > 0.95,
    }
    return tuple(name for name, true in limits.items() if true)


def _sample(logs: Array, points: _Points, noise: Array, plain: bool, seed: int) -> dict[str, Any]:
    """Sample the posterior: draws z (draws, parameters) with weights, and for each draw log v, errors and their scale."""
    count, drifts = len(logs), float(not plain)
    freedom = 0.0 if plain else FREEDOM  # the errors of the plain law alone say how well it holds
    origin = (float(points.places[0][0]), float(points.places[1][0]))
    inverse = np.linalg.inv(drifts * _drift(points, points, origin) + np.diag(noise))
    sums = inverse.sum(axis=0)

    def posterior(z: Array) -> tuple[Array, Array, Array, Array]:
        logs_v = logs + _loss(_theta(z), points)
        v = logs_v @ sums / sums.sum()
        errors = logs_v - v[:, None]
        misfit = np.einsum("ij,jk,ik->i", errors, inverse, errors)
        likelihood = -(freedom + count - 1) / 2 * np.log1p(misfit / freedom) if freedom else np.zeros(len(z))
        return likelihood, v, errors, misfit

    z, weights = (np.zeros((1, 0)), np.ones(1)) if plain else _importance(lambda z: posterior(z)[0], len(PRIORS), seed)
    _, v, errors, misfit = posterior(z)
    degrees = freedom + count - 1
    scale = (freedom + misfit) / degrees if degrees else np.zeros(1)
    found = {"z": z, "weights": weights, "v": v, "errors": errors, "scale": scale, "degrees": degrees}
    return found | {"inverse": inverse, "points": points, "origin": origin, "drifts": drifts}


def _importance(log_likelihood: Any, size: int, seed: int) -> tuple[Array, Array]:
    """Draws and weights of a posterior under a standard normal prior.

    Half of each round's draws are the prior's, half those of a normal distribution with the moments of the last round's
    weighted draws. While few draws carry the weight, the likelihood is tempered.
    """
    sobol = qmc.Sobol(size, rng=seed)
    centre, root = np.zeros(size), np.eye(size)
    z, weights = np.zeros((1, size)), np.ones(1)
    for turn in range(_ROUNDS):
        standard = norm.ppf(sobol.random(_DRAWS).clip(1e-9, 1 - 1e-9))
        adapted = np.arange(_DRAWS) >= _DRAWS // 2  # whole blocks of a Sobol sequence are balanced
        z = np.where(adapted[:, None], centre + standard @ root.T, standard)
        whitened = np.linalg.solve(root, (z - centre).T).T
        prior = -(z**2).sum(axis=1) / 2
        proposal = -(whitened**2).sum(axis=1) / 2 - np.log(np.diag(root)).sum()
        logs = log_likelihood(z) + prior - np.logaddexp(prior, proposal)
        power, weights = 1.0, _weights(logs)
        while (weights**2).sum() > 1 / 60 and power > 1e-3:
            power *= 0.7
            weights = _weights(power * logs)
        if power == 1 and turn and (weights**2).sum() < 6 / _DRAWS:
            break
        centre = weights @ z
        apart = z - centre
        root = np.linalg.cholesky(1.5 * (apart * weights[:, None]).T @ apart + 1e-6 * np.eye(size))
    return z, weights


def _weights(logs: Array) -> Array:
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _posteriors(state: dict[str, Any]) -> dict[str, Parameter]:
    theta, z, weights = _theta(state["z"]), state["z"], state["weights"]
    out = {}
    for i, name in enumerate(PRIORS):
        shrinkage = 1 - float(weights @ (z[:, i] - weights @ z[:, i]) ** 2)
        value, low, high = map(float, _quantiles(theta[name], weights, [0.5, 0.1, 0.9])[:, 0])
        out[name] = Parameter(value, low, high, level=0.8, shrinkage=shrinkage)
    return out


def left_out(table: pd.DataFrame, *, plain: bool = False) -> float | None:
    """Return the median of |predicted / measured - 1| of the time of each row when it is left out; None for one row."""
    if len(table) < 2:
        return None
    fits = (fit(table.drop(row), plain=plain).predict(table.loc[[row]])["speed"].iloc[0] for row in table.index)
    return float(np.median(np.abs(table["speed"].to_numpy(dtype=float) / np.array([*fits]) - 1)))


def prior_efficiency(devices: Array, num_nodes: Array, size: int, seed: int = 0) -> Array:
    """Return draws (size, len(devices)) of E(d) / E(1 device) from the priors and the drift alone."""
    d, nodes = np.asarray(devices, dtype=float), np.asarray(num_nodes, dtype=float)
    rng = np.random.default_rng(seed)
    theta = _theta(rng.standard_normal((size, len(PRIORS))))
    ones = np.ones_like(d)
    points = _Points(d, np.minimum(nodes, d), ones, ones, ones)
    one = _Points(*(np.ones(1) for _ in range(5)))
    drift = rng.multivariate_normal(np.zeros(len(d)), _drift(points, points, (0.0, 0.0)), size, method="eigh")
    return np.asarray(np.exp(_loss(theta, one) - _loss(theta, points) + drift).clip(max=1))


def next_runs(found: Fit, target: pd.DataFrame, candidates: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """Choose which candidates to run next: those that narrow the prediction at the target most for their device-hours.

    `target` is one row and `candidates` one or more, as `Fit.predict` takes them; `candidates` may have `device_hours`,
    what each takes (otherwise in proportion to their devices). Greedy: after each choice the rest is judged anew; a
    candidate may be chosen again, which is a repeat. Returns the chosen candidates with `sd_before` and `sd_after`, the
    standard deviation of the logarithm of the speed at the target, its own noise left out (A-optimal design of one
    target; see Ernest, NSDI 2016). Raises LawError.
    """
    if len(target) != 1 or candidates.empty or count < 1:
        raise LawError("wanted one target, one candidate or more, and a count of 1 or more")
    joined = pd.concat([target, candidates], ignore_index=True)
    covariance = found.covariance(joined)
    default = candidates["devices"].astype(float) / 60
    hours = (candidates["device_hours"].astype(float) if "device_hours" in candidates else default).to_numpy()
    chosen = []
    for _ in range(count):
        before = covariance[0, 0]
        noisy = np.diag(covariance)[1:] + NOISE**2
        after = np.sqrt((before - covariance[0, 1:] ** 2 / noisy).clip(min=0))
        best = int(((np.sqrt(before) - after) / hours).argmax())
        chosen.append({"candidate": best, "sd_before": float(np.sqrt(before)), "sd_after": float(after[best])})
        column = covariance[:, best + 1]
        covariance = covariance - np.outer(column, column) / noisy[best]
    picked = pd.DataFrame(chosen)
    which = picked.pop("candidate").to_numpy()
    rows = candidates.iloc[which].reset_index(drop=True)
    return pd.concat([rows.assign(device_hours=hours[which]), picked], axis=1)
