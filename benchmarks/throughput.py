"""How many real sentences a second `lxt.explain` explains, in batches and one at a time.

The sentences are cut out of book excerpts at question marks, exclamation marks and semicolons
(that corpus has no full stops), so that their lengths are as uneven as those of real text. Each
way runs all of them once a round, by turns, on the default model.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --sentences 200 --batch-sizes 4 8 16 32 --repeats 3
"""

from __future__ import annotations

import random
import re
import statistics
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

import lxt
from jobs import add_dtypes, parser, positive, tell, workplace
from measure import Machine, ratios, times_by_turns
from report import Report, Table, seconds, short, spread
from texts import book_excerpts

WORDS = range(4, 65)
WARM_UP = 4


def sentences(count: int) -> list[str]:
    """Some sentences of book excerpts, shuffled in one and the same way."""
    pieces = (
        piece.strip() for text in book_excerpts() for piece in re.split(r"(?<=[?!;])\s+", text)
    )
    found = [piece for piece in pieces if len(piece.split()) in WORDS]
    if len(found) < count:
        raise SystemExit(f"the corpus has {len(found)} sentences, not {count}")
    random.Random(0).shuffle(found)
    return found[:count]


def parse() -> Namespace:
    options = parser(__doc__ or "")
    options.add_argument("--model", help="hub id or folder (default: the embedded model)")
    options.add_argument("--sentences", type=positive, default=200, help="(default: 200)")
    options.add_argument(
        "--batch-sizes", nargs="+", type=positive, default=[4, 8, 16, 32],
        help="rows at a time (default: 4 8 16 32)",
    )  # fmt: skip
    add_dtypes(options, ["float32"])
    options.add_argument("--composite", default="attnlrp", help="preset (default: attnlrp)")
    options.add_argument("--repeats", type=positive, default=3, help="rounds (default: 3)")
    return options.parse_args()


def main() -> None:
    options = parse()
    workplace(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = sentences(options.sentences)
    report = Report("Throughput")
    for dtype in options.dtypes:
        model, tokenizer, name = lxt.load_model(options.model, device=options.device, dtype=dtype)
        lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
        report.notes.append(
            f"{len(texts)} sentences of {min(lengths)} to {max(lengths)} tokens, "
            f"{statistics.median(lengths):g} in the median. The worst difference is to the "
            "sentence explained alone, relative to its largest relevance."
        )
        table = Table(
            f"{name}, {dtype}, {options.composite}",
            ["way", "seconds", "sentences/s", "× one at a time", "worst difference"],
        )
        report.tables.append(table)
        _compare(model, tokenizer, texts, dtype, options, table, report)
    report.finish(options)


def _compare(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    dtype: str,
    options: Namespace,
    table: Table,
    report: Report,
) -> None:
    """Each way's time over all texts, and how far its rows are from those of single texts."""
    common: dict[str, Any] = {"tokenizer": tokenizer, "composite": options.composite}

    def singly(texts: list[str]) -> list[torch.Tensor]:
        return [lxt.explain(model, text, **common).relevance for text in texts]

    def batched(texts: list[str], size: int) -> list[torch.Tensor]:
        together = lxt.explain(model, texts, batch_size=size, progress=False, **common)
        return [row[keep] for row, keep in zip(together.relevance, together.mask, strict=True)]

    ways: dict[str, Callable[[list[str]], list[torch.Tensor]]] = {"one at a time": singly}
    for size in options.batch_sizes:
        ways[f"batch_size={size}"] = lambda texts, size=size: batched(texts, size)
    for way in ways.values():
        way(texts[:WARM_UP])
    tell(f"{', '.join(ways)}: {options.repeats} rounds")
    device = torch.device(options.device)
    measured = times_by_turns(
        {name: lambda way=way: way(texts) for name, way in ways.items()}, options.repeats, device
    )
    alone = singly(texts)
    for name, way in ways.items():
        rows = way(texts)
        worst = max(
            float((row - single).abs().max() / single.abs().max())
            for row, single in zip(rows, alone, strict=True)
        )
        rate = len(texts) / statistics.median(measured[name])
        faster = ratios(measured["one at a time"], measured[name])
        table.add(name, seconds(measured[name]), short(rate), spread(faster), f"{worst:.1e}")
        report.data.append(
            {"dtype": dtype, "way": name, "seconds": measured[name], "difference": worst}
        )
    report.measured_on({"machine": Machine.here(device).as_dict()})


if __name__ == "__main__":
    main()
