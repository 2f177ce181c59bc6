"""What taps add to one explanation: time, and bytes kept for the backward pass.

Explanations with and without taps run by turns, in one process. Their bytes are those that autograd
holds after the forward pass, less those without taps, beside the bytes that the tap hands back.

    python benchmarks/taps.py
    python benchmarks/taps.py --tokens 128 --rounds 9
"""

from __future__ import annotations

import argparse
import itertools

import torch

import lxt
from lxt.composites import as_composite
from lxt.explain import look_within
from lxt.text_case import TextCase
from measure import Machine, ratios, saved_bytes, times_by_turns
from texts import book_excerpts

TAPS: dict[str, list[lxt.Tap | lxt.Residual | lxt.Heads | lxt.Neurons]] = {
    "none": [],
    "residual": [lxt.Residual()],
    "heads": [lxt.Heads()],
    "neurons, summed": [lxt.Neurons(over="tokens")],
    "neurons, 10 strongest": [lxt.Neurons(top=10)],
    "neurons, all": [lxt.Neurons()],
    "residual, heads": [lxt.Residual(), lxt.Heads()],
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--composite", default="attnlrp")
    options = parser.parse_args()
    model, tokenizer, _ = lxt.load_model()
    model.requires_grad_(False)
    text = tokenizer(" ".join(book_excerpts()), return_tensors="pt").input_ids[0]
    ids = text[: options.tokens]

    def explain(name: str) -> lxt.Explanation:
        return lxt.explain(model, ids, taps=TAPS[name], composite=options.composite)

    results = {name: explain(name) for name in TAPS}  # and all is warm
    steps = {name: (lambda name=name: explain(name)) for name in TAPS}
    seconds = times_by_turns(steps, options.rounds, torch.device("cpu"))
    constants = list(itertools.chain(model.parameters(), model.buffers()))
    composite = as_composite(options.composite)

    def forward(name: str) -> object:
        look = look_within(model, None, TAPS[name], None, composite)
        case = TextCase(model, ids, inside=look)
        with composite.context(model) as propagation:
            if case.inside is not None:
                propagation.probes = case.inside.probes
            return case.read([0])

    held = {name: saved_bytes(lambda name=name: forward(name), constants) for name in TAPS}
    print(Machine.here(torch.device("cpu")))
    print(f"SmolLM2-135M, {len(ids)} tokens, {options.composite}, {options.rounds} rounds")
    print("| taps | time, × without | kept for the backward pass | more | handed back |")
    print("|---|---|---|---|---|")
    for name in TAPS:
        spread = ratios(seconds[name], seconds["none"])
        latent = results[name].latent.values()
        returned = sum(x.nbytes for one in latent for x in (one.relevance, one.activation))
        print(
            f"| {name} | {spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f}) "
            f"| {held[name] / 1e6:.1f} MB | {(held[name] - held['none']) / 1e6:.1f} MB "
            f"| {returned / 1e6:.1f} MB |"
        )


if __name__ == "__main__":
    main()
