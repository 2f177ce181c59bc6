"""Fixtures that several files share, and what holds for all."""

import os

import pytest
import torch

from lxt.errors import ModelUnavailable
from lxt.models import LoadedModel, load_model

# Rich keeps the codes of a style as it first wrote them: every test's terminal has all colours.
os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """Tiny models are faster on few threads, and workers side by side don't fight for cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded default, on the CPU in float32."""
    try:
        return load_model()
    except ModelUnavailable as error:
        pytest.skip(f"the default model can't be had: {error}")
