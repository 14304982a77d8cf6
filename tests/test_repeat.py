"""Suite files that repeat stored runs: the very configuration, or a reason why not."""

from pathlib import Path
from typing import Any

import pytest

from analytics.runs.frame import frame
from analytics.runs.repeat import CannotRepeat, again, spec_of
from bench.figures.metrics import parameters
from bench.schema import Gpu, Machine, RunSpec
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand
from bench.suites.load import load_suite
from tests import rows

SUITES = sorted(path for path in (Path(__file__).parent.parent / "suites").glob("*.yaml") if "search" not in path.stem)
CPU = Machine(cpu_model="Synthetic CPU", cpu_count=4)
GPUS = [Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H100 80GB HBM3", memory_bytes=8 * 10**10) for i in range(4)]


def row(spec: RunSpec, **fields: Any) -> dict[str, Any]:
    """The row of a run of which nothing is known but what was asked."""
    about = {"run_id": spec.run_id, "config_id": spec.config_id, "suite": "given", "execution": "one", "status": "ok"}
    return {**parameters(spec), **about, "started_at": "2026-01-02T03:04:05Z", **fields}


def repeated(given: list[dict[str, Any]], index: int, folder: Path, machine: Machine = CPU) -> list[RunSpec]:
    """Write the suite of a run, and return the first repeat of what it means."""
    df = frame(given)
    (run,) = df[df["run_id"] == given[index]["run_id"]].to_dict("records")
    path = folder / "again.yaml"
    path.write_text(yamlfile.write(again(run, df)))
    return [spec for spec in expand(load_suite(path), machine).runs if spec.repeat == 0]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", [CPU, CPU.model_copy(update={"gpus": GPUS})], ids=["cpu", "cuda"])
def test_every_configuration_of_the_ready_suites(path: Path, machine: Machine, tmp_path: Path) -> None:
    """Of those that repeat nothing but values that earlier ones have, none."""
    specs = [spec for spec in expand(load_suite(path), machine).runs if spec.repeat == 0]
    given = [row(spec) for spec in specs]
    seen: set[tuple[str, str]] = set()
    for index, spec in enumerate(specs):
        values = {(name, str(value)) for name, value in parameters(spec).items()}
        if values <= seen:
            continue
        seen |= values
        found = repeated(given, index, tmp_path, machine)
        assert found[-1].config_id == spec.config_id, spec.label
        assert [one.saves for one in found[:-1]] == [spec.needs] * (spec.needs is not None), (
            "with what it needs, no more"
        )


def spec(**fields: Any) -> RunSpec:
    usual = {"workload": "command", "workload_args": {"argv": "python train.py"}, "device_type": "cpu"}
    return RunSpec.model_validate(usual | fields)


def test_what_a_table_does_not_keep(tmp_path: Path) -> None:
    given = [
        row(spec(workload_args={"argv": "python train.py --width {width} --on {flag}", "width": 2.0, "flag": True})),
        row(spec(workload_args={"argv": "python train.py --width {width}", "width": 2})),
        row(spec(workload_args={"argv": "python train.py --width {width}", "width": "2"})),
        row(spec(timeout_seconds=60.0, meters=["rapl"])),
    ]
    for index, one in enumerate(given):
        (found,) = repeated(given, index, tmp_path)
        assert found.config_id == one["config_id"]
    largest = {"workload": "text_cnn", "batch_size_per_device": "max", "measure_steps": 5, "seed": 7, "repeat": 2}
    (run,) = frame([row(RunSpec.model_validate({**largest, "device_type": "cpu"}), batch_size_per_device=48)]).to_dict(
        "records"
    )
    found = spec_of(run, frame([run]))
    assert (found.batch_size_per_device, found.repeat) == ("max", 0)
    assert found.seed == 5, "each repeat has the next seed"


def test_place_and_rent_go_with_it(tmp_path: Path) -> None:
    given = [rows.make(2), rows.make(2, precision="bf16") | {"region": "FRA"}]
    given[1] |= {"cost_basis": "owned", "suite": f"Not a {rows.HOSTILE} name"}
    stated = rows.make(4) | {"site": '{"region": "France", "pue": 1.2, "usd_per_kwh": 0.2}'}
    known = again(stated, frame([stated]))
    assert (known["region"], known["pue"], known["usd_per_kwh"]) == ("France", 1.2, 0.2)
    for older in given:  # rows of earlier versions
        del older["site"]
    df = frame(given).sort_values("precision")
    owned, rented = (again(run, df) for run in df.to_dict("records"))
    assert rented["usd_per_device_hour"] == pytest.approx(0.01 * 3600 / 10 / 2)
    assert "region" not in rented, "XX is no region that anybody knows"
    assert owned["region"] == "FRA"
    assert "usd_per_device_hour" not in owned
    assert (rented["name"], owned["name"]) == ("synthetic-again", "otaimgsrcxonerroralert1name-again")


def test_what_cannot_be_repeated() -> None:
    def refused(*given: dict[str, Any]) -> str:
        df = frame(list(given))
        with pytest.raises(CannotRepeat) as caught:
            again(df.to_dict("records")[0], df)
        return str(caught.value)

    one = row(spec())
    assert "imported" in refused(one | {"flags": "imported short_window"})
    assert "does not tell all" in refused(one | {"config_id": "0123456789"})
    assert "does not tell all" in refused({name: value for name, value in one.items() if name != "device_type"})
    lm = {"workload": "decoder_lm", "device_type": "cpu", "batch_size_per_device": 8, "measure_steps": 5}
    needs, saves = (row(RunSpec.model_validate(lm | {name: "base"})) for name in ("needs", "saves"))
    assert "needs the weights 'base'" in refused(needs)
    assert "needs the weights 'base'" in refused(needs, saves | {"execution": "another"})
    circle = needs | row(RunSpec.model_validate(lm | {"needs": "base", "saves": "base"}))
    assert "needs the weights 'base'" in refused(circle)
