"""What differs between the vendors of GPUs outside torch: names, tools, and the variables that choose GPUs.

PyTorch's builds for ROCm answer to `torch.cuda` as those for CUDA do, so the rest of the house knows no vendor by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True)
class VendorFacts:
    """`platform` is what torch is built for, `tool` the vendor's program, `meter` the one of its GPUs.

    `files` (a pattern in /dev) exist where a driver is loaded. `container` are the options that show GPUs in a container.
    """

    title: str
    platform: str
    tool: str
    meter: str
    files: str
    container: str


VENDORS: dict[str, VendorFacts] = {
    "nvidia": VendorFacts(
        *("NVIDIA", "CUDA", "nvidia-smi", "nvml", "nvidia[0-9]*"),
        "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    "amd": VendorFacts(
        *("AMD", "ROCm", "amd-smi", "amdsmi", "kfd"),
        "docker run --device /dev/kfd --device /dev/dri --group-add video",
    ),
}
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables that choose GPUs by index or UUID. HIP reads its own, or else that of CUDA."""
FILTERS = (*VISIBLE, "ROCR_VISIBLE_DEVICES")
"""All variables that hide GPUs. ROCr's is applied before HIP's, whose indices count what is left; it stays as it is."""
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
"""Values that hide all GPUs: HIP takes an empty variable for one that is not set."""


def visible(gpus: Iterable[str]) -> dict[str, str]:
    """Return the variables that show the GPUs with these UUIDs to a process, whoever made them; hidden if there are none."""
    names = ",".join(gpus)
    return dict.fromkeys(VISIBLE, names) if names else HIDDEN
