"""The work that is measured: models of several shapes, an input, and the number to explain.

Imports torch and, inside, transformers alone: peers' environments build the same models with the
releases of transformers that they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """A model's shape.

    Attributes:
        description: for the tables.
        model_class: its class in transformers; None for the default model, read from a folder.
        config: what its configuration is made of.
        tokens: the length to measure at, where it isn't for the caller to choose.
        rounds: how many times as many rounds are measured as asked for, of work that is short.

    """

    description: str
    model_class: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    rounds: int = 1


def _llama(hidden: int, intermediate: int, layers: int, heads: int, groups: int, vocabulary: int):
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
    }


WORKS: Mapping[str, Work] = {
    "smollm2": Work("SmolLM2-135M-Instruct"),
    "gpt2": Work("GPT-2 small, random", "GPT2LMHeadModel"),
    "bert": Work("BERT base classifier, random", "BertForSequenceClassification"),
    "qwen3-moe": Work(
        "Qwen3-MoE, 8 layers of 512, 16 experts, random",
        "Qwen3MoeForCausalLM",
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "moe_intermediate_size": 384,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "vocab_size": 32000,
        },
    ),
    "dispatch": Work(
        "Llama, 32 layers of 64, 16 tokens, random",
        "LlamaForCausalLM",
        _llama(64, 176, 32, 4, 2, 1000),
        tokens=16,
        rounds=5,
    ),
    "small": Work("Llama of 256, random", "LlamaForCausalLM", _llama(256, 704, 8, 4, 2, 1000)),
    "llama-1b": Work(
        "Llama-3.2-1B's shape, random",
        "LlamaForCausalLM",
        _llama(2048, 8192, 16, 32, 8, 128256),
    ),
    "llama-8b": Work(
        "Llama-3.1-8B's shape, random",
        "LlamaForCausalLM",
        _llama(4096, 14336, 32, 32, 8, 128256),
    ),
    "tiny": Work("Llama, 2 layers of 32, random", "LlamaForCausalLM", _llama(32, 64, 2, 4, 2, 100)),
}

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Case:
    """A model with an input, and the number that is explained.

    Attributes:
        model: in eval mode, its parameters frozen.
        ids: [1, tokens].
        embedded: their embeddings [1, tokens, hidden], outside of any graph.
        task: logits over the next token, or over labels.

    """

    model: nn.Module
    ids: Tensor
    embedded: Tensor
    task: Literal["causal", "label"]

    def leaf(self) -> Tensor:
        """A fresh copy of the input that wants a gradient."""
        return self.embedded.clone().requires_grad_()

    def logits(self, embedded: Tensor, *, position: int | None = None, every: bool = False):
        """The logits at the explained place, [batch, logits].

        Args:
            embedded: the input, [batch, tokens, hidden].
            position: explained, of a language model; None is the last.
            every: whether all positions' logits are computed, of which one is used.

        """
        if self.task == "label":
            return self.model(inputs_embeds=embedded).logits
        if every:
            output = self.model(inputs_embeds=embedded, use_cache=False)
            return output.logits[:, -1 if position is None else position]
        keep = 1 if position is None else torch.tensor([position], device=embedded.device)
        return self.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=keep).logits[:, 0]

    def constants(self) -> list[Tensor]:
        """What the model consists of, whoever computes with it."""
        return [*self.model.parameters(), *self.model.buffers()]

    def shortened(self, tokens: int) -> Case:
        """The same with the first few tokens."""
        return Case(self.model, self.ids[:, :tokens], self.embedded[:, :tokens], self.task)


def build(spec: Mapping[str, Any]) -> Case:
    """The case that a job describes.

    Args:
        spec: "work" (a name in `WORKS`), "tokens", "dtype", "device", and where they are wanted
            "config" (what to change in the shape), "attention" (the implementation) and "folder"
            (of the default model).

    """
    work = WORKS[spec["work"]]
    device, dtype = torch.device(spec["device"]), getattr(torch, spec["dtype"])
    model = _model(work, spec, device, dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(3, vocabulary, (1, spec["tokens"]), generator=generator).to(device)
    embedded = model.get_input_embeddings()(ids).detach()
    task = "label" if "Classification" in type(model).__name__ else "causal"
    return Case(model, ids, embedded, task)


def _model(work: Work, spec: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options = {
        "dtype" if release >= (4, 56) else "torch_dtype": dtype,
        "attn_implementation": spec.get("attention", "sdpa"),
    }
    if work.model_class is None:
        folder = Path(spec["folder"])
        if release >= (5, 0):
            transformers.logging.disable_progress_bar()
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        return model.to(device)
    cls: Any = getattr(transformers, work.model_class)
    config = cls.config_class(**{**work.config, **spec.get("config", {})})
    torch.manual_seed(0)
    with device:
        return cls._from_config(config, **options)


def default_model_folder(cache: Path) -> Path:
    """The default model as a folder that old and new releases of transformers read alike."""
    import json

    import lxt

    folder = cache / "SmolLM2-135M-Instruct"
    if not (folder / "complete").exists():
        model = lxt.load_model(device="cpu", dtype="float32").model
        model.save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # How it was spelled before transformers 5; left out, an old release would take 10,000.
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        (folder / "complete").touch()
    return folder
