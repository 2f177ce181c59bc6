"""Environments of their own for peers, made once from the package index and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers


class EnvironmentFailed(RuntimeError):
    """An environment can't be made; says why."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        requirements: besides torch, which is always the release that runs here.
        transformers: the release it works with, None for the one that runs here.
        from_source: packages to build from their source distributions.
        methods: names in `methods.PEERS`.
        rounds: measured at most, of a method that takes many passes.
        unlike: what of the comparison is unlike, for the reader.

    """

    requirements: tuple[str, ...]
    methods: tuple[str, ...]
    unlike: str
    transformers: str | None = None
    from_source: tuple[str, ...] = ()
    rounds: int | None = None

    def pip_arguments(self) -> list[str]:
        """What pip is asked to install."""
        arguments = [f"torch=={torch.__version__.split('+')[0]}"]
        arguments.append(f"transformers=={self.transformers or transformers.__version__}")
        for package in self.from_source:
            arguments += ["--no-binary", package]
        return [*arguments, *self.requirements]


PEERS: Mapping[str, Peer] = {
    "lxt": Peer(
        ("lxt==2.1",),
        ("lxt-2.1", "lxt-2.1-quickstart"),
        "LXT 2.1 doesn't import on transformers 5 and runs on 4.52.4, the release it names; the "
        "plain model it is compared with is that release's too. Its patches of classes are put in "
        "for its forward passes and out again. The quickstart computes the logits of all "
        "positions, the other line those of one.",
        transformers="4.52.4",
        from_source=("lxt",),
    ),
    "autolrp": Peer(
        ("autolrp==0.2.0",),
        ("autolrp",),
        "autoLRP runs `LRPConfig.attnlrp()`. It writes attention out, tokens × tokens, as it does "
        "by default.",
        rounds=5,
    ),
    "captum": Peer(
        ("captum==0.9.0",),
        ("captum-ig20", "captum-input-x-gradient"),
        "Captum's integrated gradients take 20 steps, one at a time, from a baseline of zeros: "
        "another method, which some use for the same end. Both of its methods include the forward "
        "pass that finds the predicted token.",
        rounds=3,
    ),
    "zennit": Peer(
        ("zennit==0.5.1", "torchvision"),
        ("zennit-epsilon",),
        "Zennit has rules for modules: its ε-rule runs on linear layers, and norms, activations "
        "and attention keep autograd's gradient, so this is no AttnLRP.",
        rounds=5,
    ),
}


def python_of(name: str, folder: Path) -> Path:
    """The Python of a peer's environment below `folder`, which is made if it isn't there.

    Raises:
        EnvironmentFailed: the packages can't be had.

    """
    arguments = PEERS[name].pip_arguments()
    digest = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:8]
    place = folder / f"{name}-{digest}"
    python = place / "bin" / "python"
    marker = place / "installed.txt"
    if marker.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    _pip(python, "install", "--quiet", *arguments)
    marker.write_text(_pip(python, "freeze"), encoding="utf-8")
    return python


def installed(python: Path) -> list[str]:
    """What is in a peer's environment, as pip spells it."""
    return (python.parent.parent / "installed.txt").read_text(encoding="utf-8").splitlines()


def _pip(python: Path, *arguments: str) -> str:
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise EnvironmentFailed(
            f"pip {arguments[0]} ended with code {done.returncode}: "
            f"{errors[-1].removeprefix('ERROR: ')[:200] if errors else 'no word'}"
        )
    return done.stdout
