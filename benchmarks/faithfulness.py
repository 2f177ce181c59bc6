"""How faithful: the area between two deletion curves, on real text and the default model.

For each excerpt the model's own next token is explained. Then tokens are deleted (their embeddings
set to zero, all but the first) one after the other, the most relevant first, and the least relevant
first; after each deletion the logit of that token is read. A faithful explanation makes the first
curve fall fast and the second one late. The figure is the mean difference of the two, in logits.

    python benchmarks/faithfulness.py [--prompts 20] [--tokens 48] [--steps 16]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys

import torch
from torch import Tensor

import lxt
from texts import book_excerpts


def deletion_curve(
    model: torch.nn.Module, ids: Tensor, order: Tensor, token: int, steps: int
) -> Tensor:
    """The logit of `token` after `steps` even deletions of the tokens in `order`: [steps]."""
    embedded = model.get_input_embeddings()(ids)  # type: ignore[operator]
    rows = embedded.repeat(steps, 1, 1)
    for row in range(steps):
        rows[row, order[: round((row + 1) * len(order) / steps)]] = 0
    return model(inputs_embeds=rows, logits_to_keep=1).logits[:, -1, token]


@torch.no_grad()
def area(model: torch.nn.Module, ids: Tensor, relevance: Tensor, token: int, steps: int) -> float:
    """Mean of least-relevant-first minus most-relevant-first."""
    most_first = relevance[1:].argsort(descending=True) + 1
    most = deletion_curve(model, ids, most_first, token, steps)
    least = deletion_curve(model, ids, most_first.flip(0), token, steps)
    return float((least - most).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=16, help="points of each curve")
    options = parser.parse_args()

    model, tokenizer, name = lxt.load_model(device="cpu")
    encoded = (tokenizer(text)["input_ids"][: options.tokens] for text in book_excerpts())
    prompts = [ids for ids in encoded if len(ids) == options.tokens][: options.prompts]
    areas: dict[str, list[float]] = {"attnlrp": [], "cp_lrp": [], "gradient": [], "random": []}
    generator = torch.Generator().manual_seed(0)
    for index, ids in enumerate(prompts):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax())
        for method, values in areas.items():
            if method == "random":
                relevance = torch.rand(len(ids), generator=generator)
            else:
                explanation = lxt.explain(model, ids, composite=method, target=lxt.Logit(token))
                relevance = explanation.relevance
            values.append(area(model, torch.tensor(ids), relevance, token, options.steps))
        line = "  ".join(f"{method} {values[-1]:+6.2f}" for method, values in areas.items())
        print(f"{index + 1:3}/{len(prompts)}  {line}", file=sys.stderr)

    print(f"{name}, {len(prompts)} excerpts of {options.tokens} tokens, torch {torch.__version__}, "
          f"{platform.machine()}")  # fmt: skip
    print(
        "| method | area between the deletion curves (logits) | standard error | wins over random |"
    )
    print("|---|---|---|---|")
    for method, values in areas.items():
        error = statistics.stdev(values) / len(values) ** 0.5
        wins = sum(v > r for v, r in zip(values, areas["random"], strict=True))
        print(f"| {method} | {statistics.mean(values):.2f} | {error:.2f} | {wins}/{len(values)} |")


if __name__ == "__main__":
    main()
