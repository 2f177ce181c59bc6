"""The environment of the tests beside it: packages that the default environment does not have."""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PACKAGES = (
    "torchvision",
    "zennit",
    "timm",
    "open_clip",
    "bitsandbytes",
    "torchao",
    "peft",
    "captum",
)
MISSING = [package for package in PACKAGES if importlib.util.find_spec(package) is None]

_libraries: list[torch.library.Library] = []  # a schema lives as long as its library object


def _declare_operators_of_torchvision() -> None:
    """Without these two schemas torchvision, and transformers beside it, do not import.

    Its wheel's compiled operators want the CUDA build of torch; no test here runs one.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        for path in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(path))
        torch.ops.torchvision.nms  # noqa: B018 (an AttributeError tells)
    except (OSError, AttributeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


if "torchvision" not in MISSING:
    _declare_operators_of_torchvision()
if os.environ.get("LXT_PEERS"):  # here a package that is missing, or broken, is a failure
    for package in PACKAGES:
        importlib.import_module(package)


class _Skipped(pytest.Module):
    """A file that is not even imported, and that says why."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(
            f"needs {', '.join(MISSING)}: see 'Peers' in CONTRIBUTING.md", allow_module_level=True
        )


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> object:
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None
