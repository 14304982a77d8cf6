"""Facts of the machine: nothing secret, and no silent run on the CPU."""

import subprocess
from pathlib import Path

import pytest

from bench.machine import environment
from bench.machine.environment import (
    EnvironmentProblem,
    TorchBuild,
    check_no_gpu_is_hidden,
    check_torch,
    describe,
    find_machine,
    processors,
    torch_build,
)
from bench.schema import Gpu, Machine

GPUS = [Gpu(index=i, uuid=f"GPU-{i}aaa", name="Synthetic", used_by=["python (7)"] if i else []) for i in range(2)]


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "TORCH_HUB_TOKEN", "NCCL_MY_TOKEN", "FI_X_PASSWORD", "OMPI_MCA_other"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    wires = {
        "UCX_NET_DEVICES": "mlx5_0:1",
        "FI_PROVIDER": "efa",
        "OMPI_MCA_btl": "^openib",
        "OMPI_MCA_btl_tcp_if": "ib0",
    }
    for name, value in wires.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["bench", "run", "--store", "https://me:hunter2@host"])
    machine, _ = find_machine()
    found = describe(machine)
    assert "hunter2" not in found.model_dump_json()
    assert found.variables["NCCL_SOCKET_IFNAME"] == "lo"
    assert wires.items() <= found.variables.items()
    assert found.packages["torch"] == torch_build()[0]
    assert found.machine.cpu_count == processors() >= 1


def test_the_fingerprint_is_of_what_results_depend_on() -> None:
    machine = Machine(cpu_model="a", cpu_count=2, gpus=GPUS)
    first = describe(machine)
    assert first.fingerprint == first.changed(load_average=9.0, argv=["x"]).fingerprint
    free = Machine(cpu_model="a", cpu_count=2, gpus=[gpu.changed(used_by=[]) for gpu in GPUS])
    assert first.fingerprint == first.changed(machine=free).fingerprint
    for change in (
        {"machine": machine.changed(driver_version="1")},
        {"packages": first.packages | {"torch": "0"}},
        {"wattbench_commit": "other"},
    ):
        assert first.fingerprint != first.changed(**change).fingerprint


def test_the_commit_of_wattbench_itself_is_kept() -> None:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        pytest.skip("NOT CHECKED: this is no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert str(environment.commit()).startswith(head[:12])


def test_the_commit_of_the_users_checkout_is_kept_and_changes_no_fingerprint(tmp_path: Path) -> None:
    machine = Machine(cpu_model="a", cpu_count=2)
    outside = describe(machine)
    assert outside.folder_commit is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.invalid", "-C", str(tmp_path)]
    (tmp_path / "train.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    inside = describe(machine)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert inside.folder_commit == head[:12]
    assert inside.fingerprint == outside.fingerprint
    (tmp_path / "train.py").write_text("2")
    assert str(describe(machine).folder_commit).startswith(f"{head[:12]}+changed.")


def test_gpus_that_torch_cannot_use_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(cpu_model="a", cpu_count=2, gpus=GPUS)
    monkeypatch.setattr(environment, "torch_build", lambda: TorchBuild("2.13.0+cpu"))
    with pytest.raises(EnvironmentProblem, match=r"torch 2\.13\.0\+cpu is built for CPU"):
        check_torch(machine, for_gpus=True)
    check_torch(Machine(cpu_model="a", cpu_count=2), for_gpus=True)
    check_torch(machine, for_gpus=False)
    monkeypatch.setattr(environment, "torch_build", lambda: TorchBuild("2.13.0", "13.0"))
    check_torch(machine, for_gpus=True)
    monkeypatch.setattr(environment, "torch_build", lambda: TorchBuild())
    with pytest.raises(EnvironmentProblem, match="torch is not installed"):
        check_torch(machine, for_gpus=True)


def test_named_gpus_are_taken_even_if_others_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "list_gpus", lambda: (GPUS, "1", None))
    assert [gpu.index for gpu in find_machine()[0].free_gpus] == [0]
    assert [gpu.index for gpu in find_machine("1")[0].free_gpus] == [1]
    assert [gpu.index for gpu in find_machine("GPU-1aaa,0")[0].free_gpus] == [1, 0]
    with pytest.raises(EnvironmentProblem, match=r"names '5', which is not visible here; visible: 0 \(GPU-0aaa\)"):
        find_machine("5")


@pytest.mark.parametrize(
    ("reason", "visible", "refused"),
    [
        (None, None, False),
        ("NVML library not found: no NVIDIA driver on this machine", None, False),
        ("the package nvidia-ml-py is not installed", None, False),
        ("NVML did not start: Driver/library version mismatch", None, True),
        ("CUDA_VISIBLE_DEVICES leaves no GPU visible", "", False),
        ("CUDA_VISIBLE_DEVICES leaves no GPU visible", "GPU-typo", True),
    ],
)
def test_hidden_gpus_are_no_reason_to_measure_the_cpu(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, visible: str | None, refused: bool
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if refused:
        with pytest.raises(EnvironmentProblem, match="none can be used"):
            check_no_gpu_is_hidden(reason)
    else:
        check_no_gpu_is_hidden(reason)
