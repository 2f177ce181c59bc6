"""What an explanation costs, as a multiple of a plain forward and backward pass.

Plain is the unmodified model with its parameters frozen: one forward pass on embedded tokens that
computes the logits of the last position alone, and one backward pass to these embeddings. Each
method is measured by turns with it, in one process, on the same weights and the same tokens; the
ratio of times is the median over rounds, with quartiles. Bytes kept for the backward pass are
counted twice, by asking autograd and by asking the allocator. The peak of resident memory is of a
fresh process for each method. Peers run in environments of their own, made from the package index
at the first call, each against the plain model there.

    python benchmarks/cost.py
    python benchmarks/cost.py --models smollm2 --tokens 512 --peers lxt autolrp captum zennit
    python benchmarks/cost.py --device cuda --models llama-8b --tokens 512 4096 --dtypes bfloat16
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from environments import PEERS, EnvironmentFailed, installed, python_of
from jobs import JobFailed, Workplace, add_dtypes, parser, positive, tell, workplace
from measure import ratios
from report import NOTHING, Report, Table, megabytes, seconds, share, spread
from works import WORKS

COLUMNS = [
    "method",
    "seconds",
    "× plain (quartiles)",
    "saved MB",
    "× plain",
    "alive MB",
    "× plain",
    "peak MB",
    "× plain",
    "resident MB",
    "× plain",
]
NOTES = [
    "MB is 10⁶ bytes. *saved*: distinct storages that autograd holds for the backward pass once "
    "the forward pass is over, without the model's own. *alive*: what the forward pass took from "
    "the allocator and still has then, the input and the logits with it, in whatever way it is "
    "kept. *peak*: the most that forward and backward pass took at a time. *resident*: how far "
    "the resident memory of a fresh process rose above what it was with the model loaded.",
]


def parse() -> Namespace:
    options = parser(__doc__ or "")
    options.add_argument(
        "--models", nargs="+", choices=list(WORKS), metavar="MODEL",
        default=["smollm2", "gpt2", "bert", "qwen3-moe", "dispatch"],
        help="of " + "; ".join(f"{name} ({work.description})" for name, work in WORKS.items()),
    )  # fmt: skip
    options.add_argument(
        "--tokens", nargs="+", type=positive, default=[512],
        help="lengths of the input (default: 512; dispatch always has 16)",
    )  # fmt: skip
    add_dtypes(options, ["float32", "bfloat16"])
    options.add_argument("--repeats", type=positive, default=9, help="rounds (default: 9)")
    options.add_argument(
        "--composites", nargs="+", default=["attnlrp", "cp_lrp"],
        help="presets of lxt, one with checkpoints as attnlrp/checkpoint=sqrt "
        "(default: attnlrp cp_lrp)",
    )  # fmt: skip
    options.add_argument(
        "--peers", nargs="*", choices=list(PEERS),
        help=f"of {', '.join(PEERS)}; by itself: all (default: none)",
    )  # fmt: skip
    options.add_argument(
        "--peer-models", nargs="+", choices=list(WORKS), default=["smollm2"], metavar="MODEL",
        help="models that peers are measured on (default: smollm2)",
    )  # fmt: skip
    options.add_argument(
        "--environments", type=Path, metavar="DIR", help="folder of the peers' environments"
    )
    options.add_argument("--attention", default="sdpa", help="implementation (default: sdpa)")
    options.add_argument(
        "--no-resident",
        action="store_true",
        help="leave out the peaks of resident memory, which are measured on the CPU only",
    )
    parsed = options.parse_args()
    if parsed.peers is not None:
        parsed.peers = parsed.peers or list(PEERS)
    return parsed


def main() -> None:
    options = parse()
    place = workplace(options)
    report = Report("Cost of one explanation", notes=list(NOTES))
    pythons = _pythons(options, place, report)
    for name in options.models:
        fixed = WORKS[name].tokens
        for tokens in [fixed] if fixed else options.tokens:
            for dtype in options.dtypes:
                _measure(name, tokens, dtype, options, place, pythons, report)
    report.finish(options)


def _pythons(options: Namespace, place: Workplace, report: Report) -> dict[str, Path | str]:
    """Each peer's Python, or why it has none."""
    pythons: dict[str, Path | str] = {}
    if not set(options.models) & set(options.peer_models):
        return pythons
    for peer in options.peers or []:
        tell(f"the environment of {peer}")
        try:
            python = python_of(peer, options.environments or place.cache)
        except EnvironmentFailed as error:
            pythons[peer] = str(error)
        else:
            pythons[peer] = python
            report.data.append({"environment": peer, "installed": installed(python)})
        report.notes.append(PEERS[peer].unlike)
    return pythons


def _measure(
    name: str,
    tokens: int,
    dtype: str,
    options: Namespace,
    place: Workplace,
    pythons: dict[str, Path | str],
    report: Report,
) -> None:
    """One table: a model at one length in one type."""
    work = WORKS[name]
    title = f"{work.description}, {tokens} tokens, {dtype}"
    table = Table(title, COLUMNS)
    report.tables.append(table)
    common = {"work": name, "tokens": tokens, "dtype": dtype, "attention": options.attention}
    rounds = options.repeats * work.rounds
    wants_resident = place.device == "cpu" and not options.no_resident

    def group(methods: list[str], rounds: int, python: Path | None, label: str) -> None:
        names = ["plain", *methods]
        tell(f"{title}: {', '.join(names)}")
        try:
            measured = place.run(place.job("cost", **common, methods=names, rounds=rounds), python)
        except JobFailed as error:
            _failed(table, label, str(error))
            report.data.append({**common, "methods": names, "failed": str(error)})
            return
        if python is None:
            report.measured_on(measured)
        elif measured["machine"]["torch"] != torch.__version__:
            report.notes.append(
                f"{label} ran on torch {measured['machine']['torch']}, not on {torch.__version__}"
            )
        for method in names:
            if method not in measured["failed"] and wants_resident:
                job = place.job("resident", **common, methods=[method])
                try:
                    measured.setdefault("resident", {})[method] = place.run(job, python)["resident"]
                except JobFailed as error:
                    measured.setdefault("resident", {})[method] = None
                    report.notes.append(f"{title}, {method}, resident memory: {error}")
        _rows(table, names, measured, label)
        report.data.append({**common, **measured})

    group(options.composites, rounds, None, "")
    if name in options.peer_models:
        for peer, python in pythons.items():
            if isinstance(python, str):
                _failed(table, peer, python)
                continue
            few = min(rounds, PEERS[peer].rounds or rounds)
            group(list(PEERS[peer].methods), few, python, peer)


def _failed(table: Table, label: str, reason: str) -> None:
    table.add(f"{label or 'lxt'}: {reason}", *[NOTHING] * (len(COLUMNS) - 1))


def _rows(table: Table, names: list[str], measured: dict[str, Any], label: str) -> None:
    """A row for each method that was measured in one process."""
    for method in names:
        title = f"{method}, beside {label}" if method == "plain" and label else method
        if method in measured["failed"]:
            _failed(table, title, measured["failed"][method])
            continue
        cells = [title, seconds(measured["seconds"][method])]
        base = measured["seconds"].get("plain")
        cells.append(spread(ratios(measured["seconds"][method], base)) if base else NOTHING)
        rise = {
            key: value["peak"] - value["before"]
            for key, value in measured.get("resident", {}).items()
            if value
        }
        for sizes in (measured["saved"], measured["alive"], measured["peak"], rise):
            cells += [megabytes(sizes.get(method)), share(sizes.get(method), sizes.get("plain"))]
        table.add(*cells)


if __name__ == "__main__":
    main()
