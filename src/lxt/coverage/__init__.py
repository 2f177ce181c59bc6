"""Tiny models and example inputs of every model type in `transformers`, to check coverage with.

>>> from lxt.coverage import Size, build, example
>>> size = Size()
>>> model = build("llama", size)
>>> sample = example(model, "llama", size)
>>> logits = sample.run(model)

`catalogue` lists the model types and chooses a model class for each. `tiny` shrinks a type's
default configuration by rules on the names of attributes (`names`, `layers`), `build` makes the
model, `inputs` the example by the names of the forward's arguments (`arguments`).

Where no generic rule serves a model type, it gets a `Tweak` in the table of
`exceptions/text.py`, `vision.py`, `audio.py` or `multimodal.py`, keyed by model type:

    "foo": Tweak(
        "positions are counted in chunks",           # why
        config={"chunk_length": 4, "vision_config.depth": lambda size: size.layers},
        leaves={"pixel_values": lambda m: (m.size.batch, 3, 16, 16)},  # a shape, or a tensor
        kwargs={"bbox": lambda m: m.ones(m.size.batch, 4), "labels": None},
        output="encoder_last_hidden_state",
    )

A rule that serves several types is better: prefer `names` and `arguments` to a third equal tweak.
"""

from __future__ import annotations

from lxt.coverage.build import build
from lxt.coverage.catalogue import NO_MODEL, ModelType, model_type, model_types
from lxt.coverage.inputs import Example, example
from lxt.coverage.size import Size
from lxt.coverage.tiny import tiny_config

__all__ = [
    "NO_MODEL",
    "Example",
    "ModelType",
    "Size",
    "build",
    "example",
    "model_type",
    "model_types",
    "tiny_config",
]
