"""What a record says of the machine: enough to repeat an audit, nothing that names a person or a host."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "adversarial-robustness-toolbox",
    "opacus",
    "captum",
    "safetensors",
)


def tool() -> dict[str, str]:
    """Name and version of this program."""
    return {"name": "auditorch", "version": package_version("auditorch")}


def environment(device: torch.device) -> dict[str, str]:
    """Versions, platform, device and thread count."""
    libraries = {name: package_version(name) for name in _LIBRARIES}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "device": device.type,
        "device_name": _device_name(device),
        "threads": str(torch.get_num_threads()),
        **{name: found for name, found in libraries.items() if found},
    }


def package_version(name: str) -> str:
    """Version of an installed distribution, empty when there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
