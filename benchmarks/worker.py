"""Does one job in a process of its own: reads it as JSON, writes what it measured as JSON.

    python benchmarks/worker.py JOB.json RESULT.json

Runs in peers' environments, so nothing here imports lxt or rich unless a method does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from measure import (
    Machine,
    allocations,
    check_device,
    resident,
    saved_bytes,
    seconds_of,
    times_by_turns,
)
from methods import Method, method
from works import Case, build

WARM_UP_TOKENS = 8


def perform(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job, which is what `works.build` takes, with "kind", "methods" and "threads"."""
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    device = check_device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    let_torchvision_import()
    case = build(job)
    result = KINDS[job["kind"]](job, case, device)
    return {**result, "machine": Machine.here(device).as_dict()}


def _cost(job: Mapping[str, Any], case: Case, device: torch.device) -> dict[str, Any]:
    """Time by turns, and bytes: saved, alive after the forward pass, at the peak.

    A method that fails doesn't take the others with it.
    """
    methods: dict[str, Method] = {}
    failed: dict[str, str] = {}
    for name in job["methods"]:
        try:
            candidate = method(name, case)
            candidate.explain(None)  # a round to warm up
            methods[name] = candidate
        except Exception as error:  # a peer may raise anything
            failed[name] = reason(error)
    if failed and device.type == "cuda":
        torch.cuda.empty_cache()  # of what a method took that ran out of it
    seconds = times_by_turns({name: _last(m) for name, m in methods.items()}, job["rounds"], device)
    saved: dict[str, int] = {}
    alive: dict[str, int] = {}
    peak: dict[str, int] = {}
    for name, m in methods.items():
        if m.forward is not None:
            saved[name] = saved_bytes(m.forward, case.constants())
            alive[name] = allocations(m.forward, device).alive
        peak[name] = allocations(_last(m), device).peak
    return {"seconds": seconds, "saved": saved, "alive": alive, "peak": peak, "failed": failed}


def _last(m: Method) -> Callable[[], object]:
    return lambda: m.explain(None)


def _resident(job: Mapping[str, Any], case: Case, _: torch.device) -> dict[str, Any]:
    """Peak resident memory of one call, of one method, of this process that does nothing else."""
    (name,) = job["methods"]
    method(name, case.shortened(WARM_UP_TOKENS)).explain(None)
    measured = resident(_last(method(name, case)))
    return {"resident": asdict(measured) if measured else None}


def _positions(job: Mapping[str, Any], case: Case, device: torch.device) -> dict[str, Any]:
    """Seconds of a forward and backward pass for each of some positions, by turns."""
    methods = {name: method(name, case) for name in job["methods"]}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for m in methods.values():
        m.explain(None)
    for position in job["positions"]:
        steps = {name: _at(m, position) for name, m in methods.items()}
        for name, values in times_by_turns(steps, 1, device).items():
            seconds[name] += values
    return {"seconds": seconds}


def _at(m: Method, position: int) -> Callable[[], object]:
    return lambda: m.explain(position)


def _targets(job: Mapping[str, Any], case: Case, device: torch.device) -> dict[str, Any]:
    """Many targets in one call; and how far a few of them are from calls of their own."""
    positions, sample = job["positions"], job["sample"]
    _many(job, case, positions[:1])
    seconds = [
        seconds_of(lambda: _many(job, case, positions), device) for _ in range(job["rounds"])
    ]
    peak = allocations(lambda: _many(job, case, positions), device).peak
    together = _many(job, case, positions)
    worst = 0.0
    for position in sample:
        alone = _alone(job, case, position)
        row = together[positions.index(position)]
        worst = max(worst, float((row - alone).abs().max() / alone.abs().max()))
    return {"seconds": seconds, "peak": peak, "difference": worst}


def _many(job: Mapping[str, Any], case: Case, positions: list[int]) -> torch.Tensor:
    """Relevance [positions, tokens] for the next token of each position."""
    import lxt

    target = lxt.Every(positions)
    options = {"composite": job["composite"], "progress": False}
    return lxt.explain(case.model, case.ids[0], target=target, **options).relevance


def _alone(job: Mapping[str, Any], case: Case, position: int) -> torch.Tensor:
    """Relevance [tokens] for the next token of one position."""
    import lxt

    last = position == case.ids.shape[1] - 1
    token = None if last else int(case.ids[0, position + 1])
    place = {"position": position}
    target = lxt.Prediction(**place) if token is None else lxt.Logit(token, **place)
    composite = job["composite"]
    return lxt.explain(case.model, case.ids[0], target=target, composite=composite).relevance


def _targets_resident(job: Mapping[str, Any], case: Case, _: torch.device) -> dict[str, Any]:
    """Peak resident memory of one call with many targets."""
    _many(job, case.shortened(WARM_UP_TOKENS), [WARM_UP_TOKENS - 1])
    measured = resident(lambda: _many(job, case, job["positions"]))
    return {"resident": asdict(measured) if measured else None}


KINDS: Mapping[str, Callable[[Mapping[str, Any], Case, torch.device], dict[str, Any]]] = {
    "cost": _cost,
    "resident": _resident,
    "positions": _positions,
    "targets": _targets,
    "targets-resident": _targets_resident,
}


def let_torchvision_import() -> None:
    """Let torchvision import beside a torch without CUDA, where its own operators don't load.

    Some peers need it, transformers imports it wherever it is, and no model here calls it.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        importlib.import_module("torchvision")


_libraries: list[torch.library.Library] = []  # a schema lives as long as its library object


def reason(error: BaseException) -> str:
    """What an exception says, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def main() -> None:
    job_path, result_path = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    try:
        result = perform(job)
    except Exception as error:
        result_path.write_text(json.dumps({"error": reason(error)}), encoding="utf-8")
        raise
    result_path.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
