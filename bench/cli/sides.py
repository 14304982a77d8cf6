"""Which runs a name means that `bench compare` is given: a suite, commit, host, file or saved baseline."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import fail
from bench.cli.selection import suite_name

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("suite", "commit", "host", "file", "baseline")


@dataclass(frozen=True)
class Side:
    """Runs that a name means, of the newest execution of each suite unless one is named."""

    kind: str
    name: str
    df: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Sources:
    """Where runs are looked for: a store (read when it is needed), files, and a folder of baselines."""

    def __init__(self, store: str | None, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.problem = ""

    @cached_property
    def df(self) -> pd.DataFrame:
        """Runs of the store; none, and `problem` says why, where it cannot be read."""
        from analytics.frame import frame
        from analytics.store import load
        from bench.store import tracker as tracking

        try:
            return load(self.store)
        except tracking.StoreError as error:
            self.problem = str(error)
            return frame([])

    def find(self, text: str) -> Side:
        """Return the runs that a name means; one that means nothing, or several things, ends the command with code 2."""
        from analytics.frame import latest_execution, tidy
        from analytics.rowfiles import RowsError

        kind, _, name = text.partition(":")
        if kind not in KINDS or not name:
            kind, name = "", text
        if not kind and Path(text).suffix in (".csv", ".json", ".parquet", ".yaml", ".yml") and Path(text).is_file():
            kind = "suite" if Path(text).suffix in (".yaml", ".yml") else "file"
        try:
            known = {one: getattr(self, f"_{one}")(name, bool(kind)) for one in ([kind] if kind else KINDS)}
            found = {one: df for one, df in known.items() if len(df)}
            if not found:
                what = kind or "suite, commit, host, file or saved baseline"
                fail(f"{text!r} is no {what} here; {self._known(kind, name)}")
        except (OSError, subprocess.SubprocessError, RowsError) as error:
            fail(str(error))
        if len(found) > 1:
            fail(f"{text!r} is a {' and a '.join(found)}: write {' or '.join(f'{one}:{text}' for one in found)}")
        ((kind, df),) = found.items()
        return Side(kind, name, df if kind in ("file", "baseline") else tidy(latest_execution(df)))

    def _known(self, kind: str, name: str) -> str:
        """What there is instead, for a message."""
        from analytics.rowfiles import SUPPORTED, baselines
        from bench.registry import did_you_mean

        if kind == "file":
            return SUPPORTED
        there = {one: set(self.df[one].dropna()) for one in ("suite", "commit", "host")}
        there["baseline"] = set(baselines(self.folder))
        names = there[kind] if kind else set().union(*there.values())
        if kind == "commit" and len(self.df) and not names:
            return "the runs in the store were logged without their commits: bench sync --store URI logs them anew"
        return self.problem or (
            did_you_mean(name, names) if names else f"nothing is stored yet (--folder {self.folder})"
        )

    def _suite(self, name: str, sure: bool) -> pd.DataFrame:
        if Path(name).is_file():
            name = suite_name(name)
        suite, _, execution = re.sub("@", ":", name, count=1).partition(":")
        df = self.df.loc[self.df["suite"] == suite]
        if not execution or df.empty:
            return df
        known: list[str] = sorted(df["execution"].dropna().unique())
        there = [one for one in known if one.startswith(execution)]
        if len(there) != 1:
            fail(
                f"suite {suite!r} has {len(there) or 'no'} executions {execution!r}; there are: {', '.join(there or known)}"
            )
        return df.loc[df["execution"] == there[0]]

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
            fail(f"commit {name!r} is one of {len(same)}: {', '.join(same)}")
        return self.df[self.df["commit"].isin(plain if len(same) > 1 else same)]

    def _host(self, name: str, sure: bool) -> pd.DataFrame:
        return self.df.loc[self.df["host"] == name]

    def _file(self, name: str, sure: bool) -> pd.DataFrame:
        from analytics.frame import frame
        from analytics.rowfiles import read_rows

        return frame(read_rows(Path(name)) if sure or Path(name).is_file() else [])

    def _baseline(self, name: str, sure: bool) -> pd.DataFrame:
        from analytics.frame import frame
        from analytics.rowfiles import baseline_path, baselines, read_rows

        return frame(read_rows(baseline_path(self.folder, name)) if name in baselines(self.folder) else [])
