"""Divided models that are built without memory: each rank holds its part and nothing else, and they are good models."""

import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import forked
from tests.test_parallelism import Case, spec, train

torch = pytest.importorskip("torch")

TEXT = {"workload": "llama"}
CASES: dict[int, dict[str, Case]] = {
    2: {
        "tp": ("", {"name": "tp", "meta": True}, 8, {}, None),
        "tp, llama": ("", {"name": "tp", "meta": True}, 8, TEXT, None),
        "pp": ("", {"name": "pp", "meta": True}, 8, {}, None),
        "pp, llama": ("", {"name": "pp", "meta": True}, 8, TEXT, None),
    },
    4: {
        "fsdp_tp": ("", {"name": "fsdp_tp", "meta": True}, 4, {}, None),
        "pp, two copies": ("", {"name": "pp", "size": 2, "meta": True}, 4, {}, None),
    },
}


def _rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / f"store-{world}"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        for name, (_, parallelism, batch, more, _) in CASES[world].items():
            found = train(spec(world, parallelism, batch, **more), None)
            if rank == 0:
                torch.save(found, folder / f"{name}.pt")
    except BaseException:
        (folder / f"error-{world}-{rank}.txt").write_text(f"{name}\n{traceback.format_exc()}")
        os._exit(1)
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    forked(_rank, CASES, made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for cases in CASES.values() for name in cases])
def test_a_divided_model_that_was_built_without_memory_is_trained(folder: Path, name: str) -> None:
    path = folder / f"{name}.pt"
    assert path.exists(), "\n".join(error.read_text() for error in folder.glob("error-*.txt")) or "it took too long"
    found: dict[str, Any] = torch.load(path)
    assert found["losses"] == pytest.approx([5.55] * 3, abs=0.1)  # ln 257: it knows nothing yet
    state = found["state"]
    llama = "llama" in name
    embedding, head = ("model.embed_tokens" if llama else "transformer.wte"), "lm_head"
    assert torch.equal(state[f"{embedding}.weight"], state[f"{head}.weight"]) is not llama
    layers = "model.layers" if llama else "transformer.h"
    for key in (
        f"{embedding}.weight",
        *(f"{layers}.{i}.mlp.{'up_proj' if llama else 'c_fc'}.weight" for i in range(4)),
    ):
        assert state[key].std() == pytest.approx(0.02, rel=0.1), key
        for axis in (0, 1):
            first, second = (part[:16, :16] for part in state[key].chunk(2, axis))
            assert not torch.allclose(first, second, atol=1e-3), key  # parts have numbers of their own
    one, other = (state[f"{layers}.{i}.mlp.{'up_proj' if llama else 'c_fc'}.weight"] for i in (0, 3))
    assert not torch.allclose(one, other, atol=1e-3)


def test_pretrained_weights_cannot_be_divided_before_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from bench.strategies.decoders import to_divide
    from bench.strategies.parts import Unsupported

    parts: Any = SimpleNamespace(
        spec=spec(2, {"name": "tp", "meta": True}, 8),
        workload=SimpleNamespace(args=SimpleNamespace(pretrained="folder")),
    )
    with pytest.raises(Unsupported, match="meta creates random weights"):
        to_divide(parts)
