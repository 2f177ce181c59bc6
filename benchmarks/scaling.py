"""How memory and time grow: with length, with depth, and with the number of targets.

*Length*: SmolLM2-135M. *Depth*: Llama layers of 256 channels, random weights. Both for the plain
model, for a preset, and for the preset with checkpoints.

*Targets*: the next tokens of evenly spread positions of one input, explained in one call, against
one forward and backward pass for each as LXT has it. The latter is timed for a few positions, by
turns, and multiplied by their number; with LXT 2.1 itself where `--peers lxt` asks for it.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --of length --lengths 128 512 2048 8192
    python benchmarks/scaling.py --of targets --targets 1 16 256 --peers lxt
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

from environments import PEERS, EnvironmentFailed, python_of
from jobs import JobFailed, Workplace, add_dtypes, parser, positive, tell, workplace
from report import NOTHING, Report, Table, megabytes, seconds, share, short
from works import WORKS

KINDS = ("length", "depth", "targets")


def parse() -> Namespace:
    options = parser(__doc__ or "")
    options.add_argument(
        "--of", nargs="+", choices=KINDS, default=list(KINDS), help="which (default: all)"
    )
    options.add_argument(
        "--lengths", nargs="+", type=positive, default=[128, 256, 512, 1024, 2048, 4096, 8192]
    )
    options.add_argument("--depths", nargs="+", type=positive, default=[8, 16, 32, 64, 128])
    options.add_argument(
        "--depth-tokens", type=positive, default=256, help="length for the depths (default: 256)"
    )
    options.add_argument("--targets", nargs="+", type=positive, default=[1, 4, 16, 64, 256])
    options.add_argument(
        "--target-tokens", type=positive, default=256, help="length for the targets (default: 256)"
    )
    options.add_argument(
        "--sample", type=positive, default=6, help="positions timed one by one (default: 6)"
    )
    options.add_argument(
        "--model", choices=list(WORKS), default="smollm2", metavar="MODEL",
        help=f"for length and targets, of {', '.join(WORKS)} (default: smollm2)",
    )  # fmt: skip
    add_dtypes(options, ["float32"])
    options.add_argument("--composite", default="attnlrp", help="preset (default: attnlrp)")
    options.add_argument(
        "--checkpoints", nargs="*", default=["sqrt", "1"],
        help='layers to a segment, or "sqrt" (default: sqrt 1)',
    )  # fmt: skip
    options.add_argument("--repeats", type=positive, default=3, help="rounds (default: 3)")
    options.add_argument("--peers", nargs="+", choices=["lxt"], default=[], help="for the targets")
    options.add_argument(
        "--environments", type=Path, metavar="DIR", help="folder of the peers' environments"
    )
    parsed = options.parse_args()
    if max(parsed.targets) > parsed.target_tokens and "targets" in parsed.of:
        options.error(
            f"--targets {max(parsed.targets)}: {parsed.target_tokens} tokens have no more than "
            f"{parsed.target_tokens} next tokens"
        )
    return parsed


def main() -> None:
    options = parse()
    place = workplace(options)
    report = Report("Scaling")
    report.notes.append(
        "MB is 10⁶ bytes; *saved*, *alive*, *peak* and *resident* as in the table of cost."
    )
    for dtype in options.dtypes:
        if "length" in options.of:
            points = [(tokens, {"tokens": tokens}) for tokens in options.lengths]
            title = f"{WORKS[options.model].description}, {dtype}, by length"
            _curve(title, "tokens", options.model, dtype, points, options, place, report)
        if "depth" in options.of:
            tokens = options.depth_tokens
            points = [
                (layers, {"tokens": tokens, "config": {"num_hidden_layers": layers}})
                for layers in options.depths
            ]
            title = f"{WORKS['small'].description}, {tokens} tokens, {dtype}, by depth"
            _curve(title, "layers", "small", dtype, points, options, place, report)
        if "targets" in options.of:
            _targets(dtype, options, place, report)
    report.finish(options)


def _curve(
    title: str,
    axis: str,
    work: str,
    dtype: str,
    points: list[tuple[int, dict[str, Any]]],
    options: Namespace,
    place: Workplace,
    report: Report,
) -> None:
    """One table: each method at each point, its bytes also as multiples of the plain ones."""
    columns = [
        axis, "method", "seconds", "saved MB", "alive MB", "× plain", "peak MB", "× plain",
        "resident MB",
    ]  # fmt: skip
    table = Table(title, columns)
    report.tables.append(table)
    methods = ["plain", options.composite]
    methods += [f"{options.composite}/checkpoint={segment}" for segment in options.checkpoints]
    for point, more in points:
        tell(f"{title}: {point}")
        job = place.job("cost", work, dtype=dtype, methods=methods, rounds=options.repeats, **more)
        try:
            measured = place.run(job)
        except JobFailed as error:
            table.add(str(point), str(error), *[NOTHING] * (len(columns) - 2))
            report.data.append({**job, "failed": str(error)})
            continue
        report.measured_on(measured)
        measured["resident"] = {}
        for method in methods:
            if reason := measured["failed"].get(method):
                table.add(str(point), f"{method}: {reason}", *[NOTHING] * (len(columns) - 2))
                continue
            rise = _resident(
                place, place.job("resident", work, dtype=dtype, methods=[method], **more)
            )
            measured["resident"][method] = rise
            table.add(
                str(point),
                method,
                seconds(measured["seconds"][method]),
                megabytes(measured["saved"][method]),
                megabytes(measured["alive"][method]),
                share(measured["alive"][method], measured["alive"].get("plain")),
                megabytes(measured["peak"][method]),
                share(measured["peak"][method], measured["peak"].get("plain")),
                megabytes(rise) if isinstance(rise, int) else rise,
            )
        report.data.append({"axis": axis, "point": point, "work": work, "dtype": dtype, **measured})


def _resident(place: Workplace, job: dict[str, Any]) -> int | str:
    """How far resident memory rose in a fresh process, or why that isn't known."""
    if place.device != "cpu":
        return NOTHING
    try:
        measured = place.run(job)["resident"]
    except JobFailed as error:
        return str(error)
    return measured["peak"] - measured["before"] if measured else NOTHING


def _spread_out(count: int, tokens: int) -> list[int]:
    """So many positions, evenly, the last one among them."""
    return sorted({tokens - 1 - round(i * tokens / count) for i in range(count)})


def _targets(dtype: str, options: Namespace, place: Workplace, report: Report) -> None:
    """One table: many targets in one call, against a pass for each."""
    tokens, work = options.target_tokens, options.model
    title = f"{WORKS[work].description}, {tokens} tokens, {dtype}, by number of targets"
    tell(title)
    common = {"work": work, "tokens": tokens, "dtype": dtype}
    # Evenly over the positions, so that their mean stands for all of them.
    sample = _spread_out(min(options.sample, tokens), tokens)
    job = place.job("positions", **common, methods=["plain", options.composite], positions=sample)
    try:
        measured = place.run(job)
    except JobFailed as error:
        report.notes.append(f"{title}: {error}")
        return
    report.measured_on(measured)
    each = {name: statistics.fmean(values) for name, values in measured["seconds"].items()}
    report.data.append({**common, "positions": sample, **measured})
    for peer in options.peers:
        each.update(_one_by_one(peer, common, sample, options, place, report))

    names = list(each)
    columns = ["targets", "seconds", *[f"× {name} one by one" for name in names]]
    columns += ["peak MB", "resident MB", "worst difference"]
    table = Table(title, columns)
    report.tables.append(table)
    report.notes.append(
        f"One by one is extrapolated: the mean of {len(sample)} positions, spread evenly, times "
        "the number of targets. Per target: "
        + ", ".join(f"{name} {short(value)} s" for name, value in each.items())
        + ". The worst difference is to targets explained alone, relative to the largest relevance."
    )
    for count in options.targets:
        positions = _spread_out(count, tokens)
        ask = {
            "positions": positions,
            "sample": [positions[0], positions[len(positions) // 2], positions[-1]],
            "composite": options.composite,
            "rounds": options.repeats,
        }
        try:
            many = place.run(place.job("targets", **common, **ask))
        except JobFailed as error:
            table.add(f"{count}: {error}", *[NOTHING] * (len(columns) - 1))
            report.data.append({**common, "targets": count, "failed": str(error)})
            continue
        rise = _resident(place, place.job("targets-resident", **common, **ask))
        took = statistics.median(many["seconds"])
        table.add(
            str(count),
            short(took),
            *[f"{took / (each[name] * count):.2f}" for name in names],
            megabytes(many["peak"]),
            megabytes(rise) if isinstance(rise, int) else rise,
            f"{many['difference']:.1e}",
        )
        report.data.append({**common, "targets": count, "one by one": each, **many, "rise": rise})


def _one_by_one(
    peer: str,
    common: dict[str, Any],
    sample: list[int],
    options: Namespace,
    place: Workplace,
    report: Report,
) -> dict[str, float]:
    """Mean seconds per target of a peer's methods, in its environment."""
    methods = list(PEERS[peer].methods)
    try:
        python = python_of(peer, options.environments or place.cache)
        measured = place.run(
            place.job("positions", **common, methods=methods, positions=sample), python
        )
    except (EnvironmentFailed, JobFailed) as error:
        report.notes.append(f"{peer} can't be measured: {error}")
        return {}
    report.notes.append(PEERS[peer].unlike)
    report.data.append({**common, "positions": sample, **measured})
    return {name: statistics.fmean(values) for name, values in measured["seconds"].items()}


if __name__ == "__main__":
    main()
