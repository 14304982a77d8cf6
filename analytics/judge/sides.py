"""Which runs BASE and NEW of a comparison mean: a suite, commit, host, file or saved baseline; and what is compared."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.judge.comparable import metric_names, usual_metrics
from analytics.judge.compare import BESIDE, Matched, match, within
from analytics.judge.gate import Condition
from analytics.judge.matched import FOLLOW, plain
from analytics.judge.objectives import REMEDIES, columns
from analytics.runs.files import SUPPORTED, baseline_path, baselines, read_rows
from analytics.runs.frame import frame, latest_execution, tidy, varied
from analytics.runs.selection import suite_name
from analytics.runs.store import load
from bench.errors import UserError
from bench.registry import did_you_mean
from bench.schema import COMMAND
from bench.store.tracker import StoreError
from bench.workloads.command import CommandArgs

KINDS = ("suite", "commit", "host", "file", "baseline")


@dataclass(frozen=True)
class Side:
    """The runs that a name means, one row each: of the newest execution of each suite unless one is named.

    `typed` is the name as a command takes it.
    """

    kind: str
    name: str
    df: pd.DataFrame
    typed: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return kind, name, the number of runs, and their suites, executions, commits and hosts."""
        columns = ("suite", "execution", "commit", "host")
        values = {f"{name}s": sorted(self.df[name].dropna().unique()) for name in columns}
        return {"kind": self.kind, "name": self.name, "runs": len(self.df), **values}


class Sources:
    """Where runs are looked up: a store, read when it is first needed, files, and a folder of baselines."""

    def __init__(self, store: str | None, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.problem = ""

    @cached_property
    def df(self) -> pd.DataFrame:
        """The runs of the store. Where it cannot be read there are none, and `problem` says why."""
        try:
            return load(self.store)
        except StoreError as error:
            self.problem = str(error)
            return frame([])

    def find(self, text: str) -> Side:
        """Return the runs that a name means. Raises UserError for a name that means nothing, or several things."""
        kind, _, name = text.partition(":")
        if kind not in KINDS or not name:
            kind, name = "", text
        if not kind and Path(text).suffix in (".csv", ".json", ".parquet", ".yaml", ".yml") and Path(text).is_file():
            kind = "suite" if Path(text).suffix in (".yaml", ".yml") else "file"
        try:
            frames = {each: getattr(self, f"_{each}")(name, bool(kind)) for each in ([kind] if kind else KINDS)}
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(str(error)) from error
        matching = {each: df for each, df in frames.items() if len(df)}
        if not matching:
            what = kind or "suite, commit, host, file or saved baseline"
            raise UserError(f"{text!r} is no {what} here; {self._instead(kind, name)}")
        if len(matching) > 1:
            options = " or ".join(f"{each}:{text}" for each in matching)
            raise UserError(f"{text!r} is a {' and a '.join(matching)}: write {options}")
        ((kind, df),) = matching.items()
        return Side(kind, name, df if kind in ("file", "baseline") else tidy(latest_execution(df)), text)

    def _instead(self, kind: str, name: str) -> str:
        """What there is instead, for a message."""
        if kind == "file":
            return SUPPORTED
        names = {each: set(self.df[each].dropna()) for each in ("suite", "commit", "host")}
        names["baseline"] = set(baselines(self.folder))
        candidates = names[kind] if kind else set().union(*names.values())
        if kind == "commit" and len(self.df) and not candidates:
            return "the runs in this store were logged without commits: bench sync --store URI logs them again"
        empty = f"nothing is stored yet (--folder {self.folder})"
        return self.problem or (did_you_mean(name, candidates) if candidates else empty)

    def _suite(self, name: str, sure: bool) -> pd.DataFrame:
        if Path(name).is_file():
            name = suite_name(name)
        suite, _, execution = re.sub("@", ":", name, count=1).partition(":")
        df = self.df.loc[self.df["suite"] == suite]
        if not execution or df.empty:
            return df
        executions: list[str] = sorted(df["execution"].dropna().unique())
        matching = [each for each in executions if each.startswith(execution)]
        if len(matching) != 1:
            count, listed = len(matching) or "no", ", ".join(matching or executions)
            raise UserError(f"suite {suite!r} has {count} executions {execution!r}; there are: {listed}")
        return df.loc[df["execution"] == matching[0]]

    def _commit(self, name: str, sure: bool) -> pd.DataFrame:
        hexadecimal = re.fullmatch(r"[0-9a-f]{4,40}(\+changed\.[0-9a-f]*)?", name)
        if sure and not hexadecimal:
            command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
            name = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
        elif not hexadecimal:
            name = ""
        same = []
        for commit in sorted(self.df["commit"].dropna().unique()) if name else ():
            clean = commit.partition("+")[0]
            if clean and (commit.startswith(name) or ("+" not in name and name.startswith(clean))):
                same.append(commit)
        plain = [commit for commit in same if "+" not in commit]
        if len(same) > 1 and len(plain) != 1:
            raise UserError(f"commit {name!r} matches {len(same)} commits: {', '.join(same)}")
        return self.df[self.df["commit"].isin(plain if len(same) > 1 else same)]

    def _host(self, name: str, sure: bool) -> pd.DataFrame:
        return self.df.loc[self.df["host"] == name]

    def _file(self, name: str, sure: bool) -> pd.DataFrame:
        return frame(read_rows(Path(name)) if sure or Path(name).is_file() else [])

    def _baseline(self, name: str, sure: bool) -> pd.DataFrame:
        return frame(read_rows(baseline_path(self.folder, name)) if name in baselines(self.folder) else [])


def list_baselines(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Describe the baselines of a folder: name, runs, suites, executions, commits, hosts; and say which cannot be read."""
    facts: list[dict[str, Any]] = []
    problems = []
    for name in baselines(folder):
        try:
            rows = read_rows(baseline_path(folder, name))
            facts.append(Side("baseline", name, frame(rows)).to_dict())
        except UserError as error:
            problems.append(f"{name}: {error}")
    return facts, problems


def compared(sides: Sequence[Side], metrics: Sequence[str], equivalence: float) -> Matched:
    """Compare NEW with BASE, or the configurations of one side with each other.

    Raises UserError where there is nothing to compare.
    """
    if len(sides) == 1:
        matched = within(sides[0].df, metrics, equivalence)
        reason = f"{sides[0]} alone has nothing to compare: give two configurations of the same work, or BASE and NEW"
    else:
        base, new = sides
        matched = match(_as_asked(new.df, base.df), base.df, str(base), metrics, equivalence)
        reason = f"{base} and {new} have no configuration in common: {_apart(base.df, new.df)}"
    if not matched.comparisons:
        raise UserError(reason)
    if not metrics and all(comparison.status == "ok" for comparison in matched.comparisons):
        names = " and ".join(map(str, sides))
        raise UserError(f"{names} have no metric in common that can be compared; name one with --metric")
    return matched


_FEW = 4
"""So many fields, and values of a field, are listed."""


def _apart(base: pd.DataFrame, new: pd.DataFrame) -> str:
    """Say in which fields the configurations of two sides differ, and how: those that have no value in common, if any."""
    both = pd.concat([base, new], ignore_index=True)
    columns = [name for name in varied(both) if name not in (*FOLLOW, *BESIDE)] + ["device_name"]  # of imported rows
    values = {name: [_texts(side, name) for side in (base, new)] for name in columns}
    differ = {name: texts for name, texts in values.items() if texts[0] != texts[1]}
    listed = {name: texts for name, texts in differ.items() if not {*texts[0]} & {*texts[1]}} or differ
    words = [
        f"{name.rpartition('.')[2].replace('argv', 'command').replace('_', ' ')} ({' against '.join(map(_few, texts))})"
        for name, texts in listed.items()
    ]
    return f"they differ in {_few(words)}" if words else "each has fields that the other does not know"


def _texts(runs: pd.DataFrame, column: str) -> list[str]:
    return sorted({"none" if pd.isna(value) else plain(value) for value in runs.get(column, pd.Series([pd.NA]))})


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_FEW]) + (f" and {len(texts) - _FEW} more" if len(texts) > _FEW else "")


def _as_asked(new: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Return runs of commands under the `config_id` of their counterparts in `base`, where no configuration is in both.

    The counterpart has the same arguments of the user's own (`--set`), or both are the only ones: then the commands differ.
    """
    commands = all((df["workload"] == COMMAND).all() for df in (new, base))
    if not commands or set(new["config_id"]) & set(base["config_id"]):
        return new
    theirs, ours = _own_arguments(base), _own_arguments(new)
    if len(theirs) == len(ours) == 1:
        pairs = dict(zip(ours, theirs, strict=True))
    else:
        alike = ((one, [other for other in theirs if theirs[other] == ours[one]]) for one in ours)
        pairs = {one: others[0] for one, others in alike if len(others) == 1}
    return new.assign(config_id=new["config_id"].replace(pairs))


def _own_arguments(df: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return by `config_id` the arguments of commands that are the user's own."""
    ours = {f"workload_args.{name}" for name in CommandArgs.model_fields}
    names = [name for name in map(str, df) if name.startswith("workload_args.") and name not in ours]
    rows = df.drop_duplicates("config_id").set_index("config_id")[names].to_dict("index")
    return {str(config): {str(k): plain(v) for k, v in row.items() if pd.notna(v)} for config, row in rows.items()}


def compared_metrics(sides: Sequence[Side], metrics: Sequence[str], conditions: Sequence[Condition]) -> list[str]:
    """Return the columns to compare by: those named, or the usual ones. Raises UserError for one that no run has."""
    frames = [side.df for side in sides]
    named = list(dict.fromkeys([*metrics, *(condition.metric for condition in conditions)]))
    names = metric_names(*frames)
    for name in named:
        if name not in names:
            where = " and of ".join(map(str, sides))
            raise UserError(f"no run of {where} has a metric {name!r}: {_alternatives(name, names)}")
    return named or usual_metrics(*frames)


def _alternatives(name: str, names: Sequence[str]) -> str:
    """Suggest the metric that was meant, or list those that are used most."""
    meant = {objective: [each for each in columns(objective, "samples") if each in names] for objective in REMEDIES}
    near = meant.get(name) or get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    usual = ["tokens_per_second", "duration_seconds", *(each for known in meant.values() for each in known), *names]
    listed = [each for each in dict.fromkeys(usual) if each in names][:15]
    return f"there are {', '.join(listed)}" + (" and more (bench fit --json)" if len(listed) < len(names) else "")
