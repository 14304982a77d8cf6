"""Priors of `bench plan` from published tables: `python -m tests.published_plan [--write]` prints them and how good they are.

--write makes analytics/data/plan_priors.json anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analytics.plan import device as hardware
from analytics.plan.speed import LEVEL
from analytics.work import IMPLAUSIBLE, implied_mfu, language_model

HERE = Path(__file__).parent
FILE = HERE.parent / "analytics" / "data" / "plan_priors.json"
SEQUENCES = {
    "llama1": 2048,
    "llama2": 4096,
    "llama3": 8192,
    "llama3.1": 8192,
    "llama3.2": 8192,
    "llama4": 8192,
    "pythia": 2048,
    "falcon": 2048,
    "smollm3": 4096,
    "starcoder": 8192,
    "openba": 1024,
}
"""Tokens of a sequence, from the papers and model cards that training_runs.csv names."""


def runs() -> pd.DataFrame:
    """Trainings with tokens and hours on devices whose peak is known: `mfu` and `suspect` (MFU hardly possible)."""
    df = pd.read_csv(HERE / "data" / "published" / "training_runs.csv")
    df = df[df["accel_hours"].notna() & df["tokens"].notna() & df["family"].isin(list(SEQUENCES))].copy()
    found = []
    for _, row in df.iterrows():
        device = hardware.find(row["accelerator"])
        work = language_model(
            row["params_total"], row["tokens"], active=row["params_active"], sequence=SEQUENCES[row["family"]]
        )
        found.append(
            (device.family, *implied_mfu(work.model_flops, row["accel_hours"], device.peak_flops("bf16")), work.flops)
        )
    df[["device_family", "mfu", "flags", "flops"]] = pd.DataFrame(found, index=df.index)
    df["suspect"] = df["flags"].map(len) > 0
    return df


def centre(df: pd.DataFrame, device_family: str | None) -> float:
    """Logarithm of MFU: mean over families of models; that of a family of devices is drawn to all by one family's weight."""
    logs = np.log(df["mfu"]).groupby([df["device_family"], df["family"]]).mean()
    if device_family not in logs.index.get_level_values(0):
        return float(logs.mean())
    own = logs[device_family]
    return float((own.sum() + logs.mean()) / (len(own) + 1))


def left_out(df: pd.DataFrame, by: str = "family") -> pd.DataFrame:
    """Predict each training from those of the other families of models (or of devices); error: log(hours predicted / true).

    `covered`: within the 80 % interval, whose width is made without the family, too.
    """
    out = []
    for name in df[by].unique():
        train, test = df[df[by] != name], df[df[by] == name]
        inner = [
            np.log(row["mfu"]) - centre(train[train["family"] != row["family"]], row["device_family"])
            for _, row in train.iterrows()
        ]
        half = stats.t.ppf((1 + LEVEL) / 2, train["family"].nunique() - 1) * np.sqrt(np.mean(np.square(inner)))
        for _, row in test.iterrows():
            error = np.log(row["mfu"]) - centre(train, row["device_family"] if by == "family" else None)
            out.append({"model": row["model"], "error": error, "covered": abs(error) <= half})
    return pd.DataFrame(out)


def scores(errors: pd.DataFrame) -> dict[str, float]:
    """Median and p90 of |hours predicted / true - 1|, and the share within the 80 % interval."""
    share = np.expm1(errors["error"]).abs()
    return {
        "trainings": len(errors),
        "median": float(share.median()),
        "p90": float(share.quantile(0.9)),
        "coverage": float(errors["covered"].mean()),
    }


def mfu_priors(df: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Log-normal prior with t tails by family of devices, and `other`: for those without trainings, or other precisions."""
    out: dict[str, dict[str, float]] = {}
    for name in [*sorted(df["device_family"].unique()), None]:
        error = left_out(df, "device_family" if name is None else "family")["error"]
        mine = df if name is None else df[df["device_family"] == name]
        known = mine["devices"].dropna().groupby(mine["family"]).median()
        out[name or "other"] = {
            "mfu": round(float(np.exp(centre(df, name))), 4),
            "log_sd": round(float(np.sqrt(np.mean(np.square(error)))), 4),
            # How much families of devices differ is known from as many of them only.
            "degrees": df["family"].nunique() - 1 if name else df["device_family"].nunique(),
            "runs": len(mine),
            "families": mine["family"].nunique(),
            "devices": round(float(np.exp(np.log(known).mean()))),
        }
    return out


def node_power() -> dict[str, float]:
    """Power of a node / (8 × limit of its GPUs) with one node at work, and phi of P(N) = P(1) (phi + (1 - phi) E(N))."""
    df = pd.read_csv(HERE / "data" / "published" / "mlperf_power.csv")
    df = df[df["submitter"].isin(["smc-ac-power", "Lenovo"])]
    df["nodes"] = df["system"].str.extract(r"^(\d+)x", expand=False).fillna("1").astype(int)
    df["limit"] = np.where(df["system"].str.contains("B200"), 8 * 1000, 8 * 700)
    mean = df.groupby(["submitter", "benchmark", "nodes"])[["duration_s", "mean_node_power_w", "limit"]].mean()
    one = mean.xs(1, level="nodes")
    logs = np.log(one["mean_node_power_w"] / one["limit"])
    phi = {}
    for (who, what, nodes), row in mean.iterrows():
        if nodes > 1 and (who, what) in one.index:
            alone = one.loc[(who, what)]
            efficiency = alone["duration_s"] / (nodes * row["duration_s"])
            phi[what, nodes] = (row["mean_node_power_w"] / alone["mean_node_power_w"] - efficiency) / (1 - efficiency)
    # 64 nodes at an efficiency of 0.24 are far from where one trains: they count for the spread alone.
    usual = np.mean([value for (_, nodes), value in phi.items() if nodes < 16])
    spread = np.sqrt(np.mean([(value - usual) ** 2 for value in phi.values()]))
    return {
        "ratio": round(float(np.exp(logs.mean())), 4),
        "log_sd": round(float(logs.std(ddof=1)), 4),
        "degrees": len(logs) - 1,
        "phi": round(float(usual), 4),
        "phi_sd": round(float(spread), 4),
    }


def document() -> dict[str, object]:
    """What `analytics/data/plan_priors.json` holds."""
    df = runs()
    df = df[~df["suspect"]]
    return {
        "sources": {
            "mfu": sorted(set(df["source"])),
            "node_power": "mlcommons/training_results_v4.0 (smc-ac-power), v5.0 (Lenovo): logs of node power",
        },
        "mfu": mfu_priors(df),
        "parameters": {"least": float(df["params_total"].min()), "most": float(df["params_total"].max())},
        "node_power": node_power(),
    }


def main() -> None:
    """Print the priors and their errors; with --write make the file anew."""
    df = runs()
    for _, row in df[df["suspect"]].iterrows():
        print(f"left out: {row['model']}, whose hours imply an MFU of {row['mfu']:.2f} (above {IMPLAUSIBLE[1]})")
    df = df[~df["suspect"]]
    for what, by in (("family of models", "family"), ("family of devices", "device_family")):
        found = scores(left_out(df, by))
        covers = f", 80 % interval covers {100 * found['coverage']:.0f} %" if by == "family" else ""
        print(
            f"hours of {found['trainings']} trainings, their {what} left out: median error {100 * found['median']:.1f} %, "
            f"p90 {100 * found['p90']:.1f} %{covers}"
        )
    made = document()
    print(json.dumps({"mfu": made["mfu"], "node_power": made["node_power"]}, indent=1))
    if "--write" in sys.argv[1:]:
        FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
