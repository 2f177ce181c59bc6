"""How well relevance within a model predicts what happens when the model is changed there.

Patching: each layer's residual stream, attention and MLP output at each token of a prompt is
replaced by that of another prompt, and the change of a logit difference is set against relevance
patching (RelP) and attribution patching. Ablation: each head, group of neurons, attention and MLP
output is replaced, at all tokens of a book excerpt, by its mean over 60 excerpts at each position,
and the change of the predicted token's logit, or of its distance from the mean of all others, is
set against the component's relevance.

    python benchmarks/causal.py [--pairs 20] [--excerpts 12] [--target contrast] [--out PATH]
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import lxt
from lxt.evaluate import Agreement, Interventions
from texts import book_excerpts

NAMES = [
    ("John", "Mary"), ("Tom", "James"), ("Dan", "Sam"), ("Martin", "Amy"), ("Paul", "Anna"),
    ("Mark", "Kate"), ("Peter", "Jane"), ("Jack", "Emma"), ("David", "Sarah"), ("Bob", "Alice"),
]  # fmt: skip
SCENES = [
    ("shops", "bag"), ("park", "ball"), ("school", "book"), ("station", "key"), ("beach", "drink"),
]  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo",
    "Russia": "Moscow", "England": "London", "Austria": "Vienna", "Egypt": "Cairo",
    "Ireland": "Dublin", "Cuba": "Havana", "Greece": "Athens", "Portugal": "Lisbon",
    "China": "Beijing", "Canada": "Ottawa", "Poland": "Warsaw", "Iraq": "Baghdad",
    "Norway": "Oslo", "Sweden": "Stockholm", "Iran": "Tehran",
}  # fmt: skip

# As the authors of RelP set it for GPT-2: norms, activations and gates have rules, attention none.
RELP = lxt.attnlrp | {F.scaled_dot_product_attention: lxt.gradient[F.scaled_dot_product_attention]}
COMPOSITES = {
    "attnlrp": lxt.attnlrp,
    "cp_lrp": lxt.cp_lrp,
    "attnlrp, attention plain": RELP,
    "gradient": lxt.gradient,
}

Pairs = tuple[list[str], list[str], list[lxt.Contrast]]


def indirect_objects(count: int) -> Pairs:
    """Who is given something; in the corrupt prompt the other one gives it."""
    clean, corrupt, targets = [], [], []
    for number in range(count):
        one, other = NAMES[number // 2 % len(NAMES)]
        place, thing = SCENES[number // 2 % len(SCENES)]
        text = f"When {one} and {other} went to the {place}, {{}} gave the {thing} to"
        giver, taker = (one, other) if number % 2 == 0 else (other, one)
        clean.append(text.format(giver))
        corrupt.append(text.format(taker))
        targets.append(lxt.Contrast(f" {taker}", f" {giver}"))
    return clean, corrupt, targets


def capitals(count: int) -> Pairs:
    """A country's capital; in the corrupt prompt the next country's."""
    countries = list(CAPITALS)
    clean, corrupt, targets = [], [], []
    for number in range(count):
        one = countries[number % len(countries)]
        other = countries[(number + 1) % len(countries)]
        clean.append(f"The capital of {one} is the city of")
        corrupt.append(f"The capital of {other} is the city of")
        targets.append(lxt.Contrast(f" {CAPITALS[one]}", f" {CAPITALS[other]}"))
    return clean, corrupt, targets


def figure(value: float, error: float) -> str:
    return "–" if value != value else f"{value:.3f}" + ("" if error != error else f" ± {error:.3f}")


def markdown(found: Interventions, averaged: bool) -> list[str]:
    """A table with a line for each component and method."""
    means: list[Agreement | None] = [None] * len(found.agreements())
    if averaged:
        means = list(found.averaged().agreements())
    lines = ["| component | method | Pearson | Spearman |", "|---|---|--:|--:|"]
    if averaged:
        lines = [
            "| component | method | Pearson | Spearman | Pearson of means | Spearman of means |",
            "|---|---|--:|--:|--:|--:|",
        ]
    for one, mean in zip(found.agreements(), means, strict=True):
        cells = [one.component, one.method]
        cells.append(figure(one.pearson, one.pearson_error))
        cells.append(figure(one.spearman, one.spearman_error))
        if mean is not None:
            cells += [f"{mean.pearson:.3f}", f"{mean.spearman:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--pairs", type=int, default=20, help="prompts to patch, of each kind; or 0"
    )
    parser.add_argument("--excerpts", type=int, default=12, help="texts to ablate on")
    parser.add_argument("--tokens", type=int, default=16, help="of each excerpt")
    parser.add_argument("--groups", type=int, default=8, help="of neurons in each MLP")
    parser.add_argument("--references", type=int, default=60, help="texts that a mean is over")
    parser.add_argument("--reference", choices=["mean at position", "mean", "zero"],
                        default="mean at position")  # fmt: skip
    parser.add_argument("--target", choices=["logit", "contrast"], default="logit",
                        help="of ablations: a logit, or less the mean of all others")  # fmt: skip
    parser.add_argument("--out", type=Path, help="a file to write the tables to as well")
    options = parser.parse_args()

    model, tokenizer, name = lxt.load_model(device="cpu")
    model.eval()
    lines = [f"{name}, torch {torch.__version__}, {platform.machine()}"]
    print(lines[0])

    def tell(title: str, found: Interventions, start: float, averaged: bool = False) -> None:
        counts = ", ".join(f"{kind} {found.component.count(kind)}" for kind in found.components)
        here = [
            "", f"**{title}**: {len(found.targets)} rows; {counts} interventions; "
            f"{time.process_time() - start:.0f} s of CPU", "", *markdown(found, averaged),
        ]  # fmt: skip
        print("\n".join(here), flush=True)
        lines.extend(here)
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for title, pairs in (
        ("Patching, indirect objects", indirect_objects(options.pairs)),
        ("Patching, capitals", capitals(options.pairs)),
    ):
        clean, corrupt, targets = pairs
        if not clean:
            continue
        start = time.process_time()
        found = lxt.evaluate.patching(
            model, clean, corrupt, tokenizer=tokenizer, target=targets, composites=COMPOSITES,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        tell(title, found, start, averaged=True)

    encoded = (tokenizer(text)["input_ids"][: options.tokens] for text in book_excerpts())
    excerpts = [ids for ids in encoded if len(ids) == options.tokens][: options.references]
    start = time.process_time()
    found = lxt.evaluate.ablation(
        model, excerpts[: options.excerpts], composites=COMPOSITES, reference=options.reference,
        reference_inputs=None if options.reference == "zero" else excerpts,
        groups=options.groups, progress=sys.stderr.isatty(),
        target=lxt.Contrast(None) if options.target == "contrast" else lxt.Prediction(),
    )  # fmt: skip
    tell(f"Ablation, {options.target}, {options.reference}", found, start)


if __name__ == "__main__":
    main()
