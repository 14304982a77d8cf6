"""A run of the store -> a suite file of that one configuration, which repeats it.

The row of a run tells all that was asked of it, but for the types that a table loses (2 or 2.0). What is read from it is
held against the row's `config_id`, the hash of what was asked: a suite is the very configuration, or there is none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analytics.runs.frame import asked
from analytics.runs.recost import sites
from bench.errors import UserError
from bench.schema import AXES, RunSpec, Suite

_ELSEWHERE = {"repeat", "ladder", "num_nodes", "devices_per_node", "device_type"}
_MOST = 4096
"""Readings of a row that are tried."""
_IMPORTED = re.compile(r"\bimported\b")


class CannotRepeat(UserError):
    """Why a run cannot be repeated from what the store holds of it, in a sentence."""


def again(run: Mapping[Any, Any], df: pd.DataFrame, repeats: int = 3) -> dict[str, Any]:
    """Return a suite, as written in a file, that repeats a run (a row of the frame `df`).

    With it come the runs whose weights it needs, from the same execution, its region, PUE and prices. Raises
    CannotRepeat.
    """
    specs = [spec_of(run, df)]
    givers = df[(df["suite"] == run["suite"]) & (df["execution"] == run["execution"])]
    while specs[0].needs is not None:
        found = givers[givers["saves"] == specs[0].needs] if "saves" in givers else givers[:0]
        if found.empty or len(specs) > len(givers):
            raise CannotRepeat(
                f"it needs the weights {specs[0].needs!r}, and the run that saved them is not in the store"
            )
        specs.insert(0, spec_of(found.to_dict("records")[0], df))
    suite = Suite(
        name=re.sub(r"[^a-z0-9_-]+|^[_-]+", "", f"{run['suite']}"[:58]) + "-again",
        defaults={"device_type": specs[-1].device_type},
        include=[
            spec.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True) | {"devices": spec.world_size}
            for spec in specs
        ],
        repeats=repeats,
        **sites(pd.DataFrame([run]))[0],
    )
    return suite.model_dump(mode="json", exclude_defaults=True)


def spec_of(run: Mapping[Any, Any], df: pd.DataFrame) -> RunSpec:
    """Return what was asked of a run (a row of the frame `df`), as repeat 0. Raises CannotRepeat."""
    if _IMPORTED.search(str(run.get("flags"))):
        raise CannotRepeat("it was imported, and what exactly was run is not known here")
    told = {name: run[name] for name in asked(df) if name in run and not pd.isna(run[name])}
    names = list(told)
    for values in itertools.islice(itertools.product(*(_readings(name, told[name]) for name in names)), _MOST):
        try:
            spec = RunSpec.model_validate(_nested(dict(zip(names, values, strict=True))))
        except ValueError:
            continue
        if run["config_id"] in (spec.config_id, spec.former_config_id):
            return spec.changed(seed=_seed(run))
    raise CannotRepeat("its row in the store does not tell all that was asked of it: run the file of its suite again")


def _seed(run: Mapping[Any, Any]) -> int:
    """The seed of repeat 0: each repeat has the next one. Of a command that is not told its seed nothing is known."""
    seed, repeat = run.get("seed"), run.get("repeat")
    return 0 if pd.isna(seed) or pd.isna(repeat) else int(seed - repeat) % 2**31


def _readings(name: str, value: Any) -> tuple[Any, ...]:
    """What a cell of the frame may have been in the row, the likeliest first."""
    if name == "batch_size_per_device":
        return int(value), "max"  # a row has the batch that was found
    if not ("." in name and name.split(".")[0] in (*AXES, "workload_args")):
        return (value,)
    if value in ("True", "False"):
        return value == "True", value
    try:
        number = float(value)
    except ValueError:
        return (value,)
    readings = (int(number), number) if number.is_integer() else (number,)
    return readings if isinstance(value, float) else (value, *readings)  # of a column that holds text too


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a RunSpec from dotted names; what follows from others is left out."""
    out: dict[str, Any] = {}
    for name, value in flat.items():
        outer, dot, inner = name.partition(".")
        if name in ("devices", "global_batch_size"):
            continue
        if outer in AXES:
            out.setdefault(outer, {})[inner or "name"] = value
        elif dot:
            out.setdefault(outer, {})[inner] = value
        else:
            out[name] = value.split() if name == "meters" else value
    return out
