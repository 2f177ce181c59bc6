"""Jobs for the worker, each in a fresh process, and the options that all scripts share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from measure import check_device
from works import DTYPES, WORKS, default_model_folder

WORKER = Path(__file__).with_name("worker.py")


class JobFailed(RuntimeError):
    """A worker ended without a result; says why."""


@dataclass(frozen=True)
class Workplace:
    """What the jobs of one run of a script have in common.

    Attributes:
        device: "cpu", "cuda", "cuda:1".
        threads: of each worker, None for torch's own choice.
        cache: the folder for models and environments.

    """

    device: str
    threads: int | None
    cache: Path

    def job(self, kind: str, work: str, tokens: int, dtype: str, **more: Any) -> dict[str, Any]:
        """A job for the worker."""
        job = {"kind": kind, "work": work, "tokens": tokens, "dtype": dtype, **more}
        if WORKS[work].model_class is None:
            job["folder"] = str(default_model_folder(self.cache))
        return {**job, "device": self.device, "threads": self.threads}

    def run(self, job: Mapping[str, Any], python: Path | None = None) -> dict[str, Any]:
        """Have a job done in a process of its own, by this Python or that of an environment.

        Raises:
            JobFailed: there is no result.

        """
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if python is not None:  # which is not to find the lxt of this checkout
            environment.pop("PYTHONPATH", None)
            environment["PYTHONNOUSERSITE"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            asked, answer = Path(folder, "job.json"), Path(folder, "result.json")
            asked.write_text(json.dumps(dict(job)), encoding="utf-8")
            done = subprocess.run(
                [str(python or sys.executable), str(WORKER), str(asked), str(answer)],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                cwd=folder,
                check=False,
            )
            if not answer.exists():
                raise JobFailed(_ending(done))
            result = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in result:
            raise JobFailed(result["error"])
        return result


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -9:
        return "killed by the system, most likely for want of memory"
    lines = done.stderr.strip().splitlines()
    return f"ended with code {done.returncode}: {lines[-1][:200] if lines else 'no word'}"


def tell(line: str) -> None:
    """A line about progress."""
    print(line, file=sys.stderr, flush=True)


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share, described by a script's docstring."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    made.add_argument(
        "--threads", type=positive, help="of the processor (default: what torch takes)"
    )
    made.add_argument(
        "--cache",
        type=Path,
        default=platformdirs.user_cache_path("lxt") / "benchmarks",
        help="folder for the model that workers read (default: %(default)s)",
    )
    made.add_argument("--json", type=Path, metavar="PATH", help="write all that was measured here")
    made.add_argument(
        "--markdown", action="store_true", help="print the tables as they go into RESULTS.md"
    )
    return made


def workplace(options: argparse.Namespace) -> Workplace:
    """What the shared options say, once the device is there."""
    check_device(options.device)
    options.cache.mkdir(parents=True, exist_ok=True)
    return Workplace(options.device, options.threads, options.cache)


def positive(text: str) -> int:
    """An integer of 1 or more, as an option's value."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def add_dtypes(made: argparse.ArgumentParser, default: list[str]) -> None:
    """The option for floating point types."""
    made.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=default, metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: {' '.join(default)})",
    )  # fmt: skip
