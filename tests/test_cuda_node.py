"""The node on a machine with GPUs: what its forks may rely on. No GPU is needed here."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import UserError
from bench.folder import RankExit
from bench.run import node
from bench.run.collect import Context
from bench.run.runner import Runner
from bench.schema import RunSpec, Site
from tests.processes import until

torch = pytest.importorskip("torch")


def spec(**fields: Any) -> RunSpec:
    base = {"workload": "decoder_lm", "device_type": "cpu", "batch_size_per_device": 1, "measure_steps": 1}
    return RunSpec.model_validate(base | fields)


@pytest.fixture
def signals() -> Any:
    """torch's agent changes the handlers of the process that starts ranks: here that of the tests."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_the_end_of_a_rank_is_no_error_of_the_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 fails, so that rank 0 is ended: it must end at once, and must not report the signal as its own error."""
    waiting, reported = tmp_path / "waiting", tmp_path / "reported"

    def rank(folder: str) -> None:
        if os.environ["RANK"] == "1":
            until(waiting.exists)
            os._exit(3)
        waiting.touch()
        try:
            time.sleep(600)
        except Exception as error:
            reported.write_text(type(error).__name__)
            os._exit(1)

    monkeypatch.setattr("bench.train.worker.main", rank)
    assert node.train(spec(devices_per_node=2), tmp_path, 0) == [RankExit(rank=1, exitcode=3)]
    assert not reported.exists()


@pytest.mark.parametrize("visible", [None, "GPU-1,GPU-2"])
def test_no_library_sees_a_gpu_while_it_is_imported(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("bench.registry.preload", lambda name: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    node.import_all(["decoder_lm", "command"])
    assert seen == [""]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_torch_forgets_what_it_was_told_while_no_gpu_was_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchao asks for triton when it is imported; every later run would be told that there is none."""
    from torch.utils import _triton

    monkeypatch.setattr("bench.registry.preload", lambda name: _triton.has_triton())
    node.import_all(["decoder_lm"])
    assert _triton.has_triton.cache_info().currsize == 0


def test_a_node_that_has_initialised_the_gpus_is_told_from_a_driver_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    facts = node.gpu_facts()
    assert (facts["count"], facts["spoiled"]) == (0, True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    facts = node.gpu_facts()
    assert (facts["count"], facts["spoiled"]) == (0, False)

    machine = SimpleNamespace(driver_version="570.1")
    context: Any = Context("suite", "1", Site(), SimpleNamespace(machine=machine), ["GPU-1"])  # type: ignore[arg-type]
    for spoiled, remedy in ((True, "Remove or update the library"), (False, "Install a torch built for this driver")):
        answer = {"torch": "2.13.0", "gpus": facts | {"spoiled": spoiled}}
        made: Any = SimpleNamespace(
            execution=SimpleNamespace(plan=SimpleNamespace(to_do=[spec(device_type="gpu")])),
            launcher=SimpleNamespace(start=lambda tick, answer=answer: answer),
            progress=SimpleNamespace(tick=None),
            context=context,
        )
        with pytest.raises(UserError, match=remedy):
            Runner.start(made)


def test_ranks_use_the_processors_of_the_agent_however_they_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    from bench.train import worker

    mine = psutil.Process().cpu_affinity()
    bound = []
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self, processors=None: bound.append(processors))
    monkeypatch.setattr(worker, "run", lambda *arguments: None)
    monkeypatch.setattr(worker, "die_with_parent", lambda: None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WATTBENCH_PROCESSORS", json.dumps(mine))
    (tmp_path / "spec.json").write_text(spec().model_dump_json())
    worker.main(str(tmp_path))
    assert bound == [mine]
