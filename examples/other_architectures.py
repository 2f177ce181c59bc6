"""Qwen, Gemma, mixtures of experts: one script for all, since nothing in it depends on the model.

Rules are found by the operations that a model runs. So a family of models differs here by its
configuration alone, and any other `transformers.models.*.modeling_*` could stand in the table.

Weights: small models, trained here in seconds to look up a word ("red ant green fox blue bee |
green" → "fox"), so that we know where relevance belongs.
Prints for AttnLRP, CP-LRP and, to compare with, gradient × input whether the forward pass is the
unpatched one to the bit, and in how many of 100 texts the answer's own word got most relevance; for
mixtures, also which experts carried it.

    python examples/other_architectures.py [qwen2 | qwen3 | gemma3 | qwen3_moe | mixtral] ...
"""

import importlib

import torch
import transformers
from _common import PAIRS, WORDS, arguments, asked_pair, lookup_texts, train_to_look_up
from torch import Tensor, nn

import lxt
from lxt.efficient import monkey_patch

SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES = {  # configuration, model, what the family has of its own
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM",
                  {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM",
                {"num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip


def relevance_of(model: nn.Module, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of each word [texts, words] for the predicted word, and the logits."""
    embeddings = model.get_input_embeddings()(texts).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
    logits.max(-1).values.sum().backward()
    return (embeddings * embeddings.grad).sum(-1), logits.detach()


def relevance_of_experts(model: nn.Module, texts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each mixture the relevance that each of its experts carried, and that of its output.

    An expert's output is multiplied by its routing weight. AttnLRP hands one half of a product's
    relevance to each factor: a weight's activation · gradient is half of what its expert carried.
    """
    kept = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        _, chosen, weights = args  # both [words, experts per word]
        weights.retain_grad()
        output.retain_grad()
        kept.append((module.num_experts, chosen, weights, output))

    mixtures = [module for name, module in model.named_modules() if name.endswith(".experts")]
    handles = [mixture.register_forward_hook(keep) for mixture in mixtures]
    relevance_of(model, texts)
    for handle in handles:
        handle.remove()

    relevances = []
    for experts, chosen, weights, output in kept:
        carried = 2 * (weights * weights.grad).flatten()
        by_expert = torch.zeros(experts).index_add(0, chosen.flatten(), carried)
        relevances.append((by_expert, (output * output.grad).sum()))
    return relevances


def show(family: str) -> None:
    config, architecture, special = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**SIZES, **special))
    train_to_look_up(model)
    texts = lookup_texts(100, seed=12345)[:, : 2 * PAIRS + 1]
    answers = asked_pair(texts) + 1

    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    print(f"{family}: {architecture}")
    unpatched = relevance_of(model, texts)[1]
    for composite in (lxt.attnlrp, lxt.cp_lrp, lxt.gradient):
        with monkey_patch(code, composite):
            relevance, logits = relevance_of(model, texts)
        found = (relevance[:, : 2 * PAIRS].argmax(1) == answers).float().mean()
        print(f"  {composite.name:8} forward identical: {torch.equal(logits, unpatched)}, "
              f"most relevant word is the answer: {found:.0%}")  # fmt: skip

    with monkey_patch(code, lxt.attnlrp):
        mixtures = relevance_of_experts(model, texts)
    for layer, (by_expert, together) in enumerate(mixtures):
        shares = "  ".join(f"{share:.0%}" for share in by_expert / together)
        print(f"  layer {layer}: of relevance {together:.1f} its experts carried {shares}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", nargs="*", help=f"any of {', '.join(FAMILIES)}; all by default")
    for family in parser.parse_args().family or FAMILIES:
        show(family)


if __name__ == "__main__":
    main()
