"""A build that is killed, at any moment and many times, ends as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

SCRIPT = """
import sys, time
import torch
import lxt
from lxt.atlas.atlas import Atlas
from planted import PlantedForCausalLM, Words
from test_atlas import texts

torch.set_num_threads(1)

def slowly():
    for text in texts(120, seed=5):
        time.sleep({pause})
        yield text

print("begins", flush=True)
Atlas.build(
    PlantedForCausalLM(), slowly(), tokenizer=Words(), taps=lxt.Tap("layers.*.mlp.act"), context=6,
    top=4, batch_size=1, flush={flush}, folder=sys.argv[1],
)
"""


def start(folder: Path, pause: float = 0.002, flush: int | None = 1) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), *sys.path])
    code = SCRIPT.format(pause=pause, flush=flush)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n", process.communicate()[1]
    return process


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(seed: int, tmp_path: Path) -> None:
    left_alone, killed = tmp_path / "left", tmp_path / "killed"
    process = start(left_alone, flush=None)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    draw = random.Random(seed)
    kills = 0
    while True:
        process = start(killed)
        time.sleep(draw.uniform(0, 0.9))
        if kills < 8 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        break
    assert kills > 0
    assert files(killed) == files(left_alone)


def test_what_was_done_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import lxt
    from lxt.atlas.atlas import Atlas
    from planted import PlantedForCausalLM, Words
    from test_atlas import texts

    corpus = texts(20)
    model = PlantedForCausalLM()
    calls: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs.get("input_ids")), with_kwargs=True
    )

    def broken():
        yield from corpus[:10]
        raise KeyboardInterrupt

    given = {"tokenizer": Words(), "taps": lxt.Tap("layers.*.mlp.act"), "context": 6,
             "batch_size": 1, "flush": 1}  # fmt: skip
    monkeypatch.setattr("lxt.atlas.rows._POOL", 1)
    with pytest.raises(KeyboardInterrupt):
        Atlas.build(model, broken(), folder=tmp_path / "a", **given)
    before = len(calls)
    Atlas.build(model, corpus, folder=tmp_path / "a", **given)
    after = len(calls) - before
    calls.clear()
    Atlas.build(model, corpus, folder=tmp_path / "b", **given)
    assert before > 5
    assert before + after == len(calls)
    left = {name: data for name, data in files(tmp_path / "a").items() if name != "manifest.json"}
    right = {name: data for name, data in files(tmp_path / "b").items() if name != "manifest.json"}
    assert left == right
