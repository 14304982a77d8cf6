"""Devices by name: one table of peaks, no stand-ins."""

import pytest

from analytics.plan import device as hardware
from bench.figures.metrics import peak_flops


@pytest.mark.parametrize(
    ("name", "device", "peak"),
    [
        ("H100-SXM", "NVIDIA H100 80GB HBM3", 989.4e12),
        ("h100 sxm5", "NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", 989.4e12),
        ("H100-PCIe", "NVIDIA H100 PCIe", 756e12),
        ("H200", "NVIDIA H200", 989.4e12),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe", 312e12),
        ("B200", "NVIDIA B200", 2250e12),
        ("L4", "NVIDIA L4", 121e12),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", 165.2e12),
        ("MI300X", "AMD Instinct MI300X", 1307.4e12),
    ],
)
def test_names_that_people_use(name: str, device: str, peak: float) -> None:
    found = hardware.find(name)
    assert found.device_name == device
    assert found.peak_flops("bf16") == pytest.approx(peak)


def test_every_device_stands_in_the_one_table_of_peaks_and_has_a_name_of_its_own() -> None:
    devices = hardware.devices()
    for device in devices:
        assert any(peak_flops(device.device_name, precision) for precision in hardware.PRECISIONS), device.name
        assert hardware.find(device.name) == hardware.find(device.device_name) == device
        assert device.watts is None or (50 < device.watts < 2000 and device.source)
        assert device.memory_bytes is not None
        assert device.per_node > 0
    assert len({device.device_name for device in devices}) == len(devices)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("H100", "may be H100-SXM or H100-PCIe or H100-NVL: say which"),
        ("A100", "may be "),
        ("H10O-SXM", "near names: H100-SXM"),
        ("H800", "unknown device 'H800': it is not in the table; give --peak-flops and --power-watts (near names: H"),
        ("H20", "may be H200"),
        ("TPUv4", "--peak-flops"),
        ("", "unknown device"),
        ("\x1b[31mred", "unknown device"),
    ],
)
def test_no_device_stands_in_for_another(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="device") as error:
        hardware.find(name)
    assert said in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_device_is_the_same_under_all_its_names() -> None:
    device = hardware.find("H100-SXM")
    assert hardware.same("NVIDIA H100 80GB HBM3", device)
    assert hardware.same("h100-sxm5", device)
    assert not hardware.same("H200", device)
    assert not hardware.same("H100", device)
    assert hardware.same("MyChip", hardware.Device("MyChip", device_name="MyChip"))


def test_a_precision_without_a_peak_is_told_with_those_that_have_one() -> None:
    with pytest.raises(ValueError, match="no peak of T4 in bf16: known are fp16, fp32; give --peak-flops"):
        hardware.find("T4").peak_flops("bf16")
    assert hardware.Device("mine", peak=1e14).peak_flops("bf16") == 1e14
