"""Every model type of the installed `transformers`, with the model class that stands for it.

All of it is read from `transformers`' own tables: the auto mappings, and, for a configuration that
no auto mapping knows, the modeling file beside it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NO_MODEL = "no model class of its own"

_TASKS: dict[str, str] = {
    "IMAGE_TEXT_TO_TEXT": "image-text-to-text",
    "MULTIMODAL_LM": "multimodal LM",
    "SPEECH_SEQ_2_SEQ": "speech seq2seq",
    "TEXT_TO_SPECTROGRAM": "text to spectrogram",
    "TEXT_TO_WAVEFORM": "text to waveform",
    "SEQ_TO_SEQ_CAUSAL_LM": "seq2seq LM",
    "MASKED_LM": "masked LM",
    "CAUSAL_LM": "causal LM",
    "CTC": "CTC",
    "RNNT": "transducer",
    "TDT": "transducer",
    "IMAGE_CLASSIFICATION": "image classification",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "zero-shot image classification",
    "VIDEO_CLASSIFICATION": "video classification",
    "AUDIO_CLASSIFICATION": "audio classification",
    "TIME_SERIES_PREDICTION": "time series prediction",
    "TIME_SERIES_CLASSIFICATION": "time series classification",
    "TIME_SERIES_REGRESSION": "time series regression",
    "SEMANTIC_SEGMENTATION": "semantic segmentation",
    "UNIVERSAL_SEGMENTATION": "universal segmentation",
    "INSTANCE_SEGMENTATION": "instance segmentation",
    "IMAGE_SEGMENTATION": "image segmentation",
    "OBJECT_DETECTION": "object detection",
    "ZERO_SHOT_OBJECT_DETECTION": "zero-shot object detection",
    "DEPTH_ESTIMATION": "depth estimation",
    "NORMAL_ESTIMATION": "normal estimation",
    "POINTMAP_ESTIMATION": "pointmap estimation",
    "POSE_ESTIMATION": "pose estimation",
    "KEYPOINT_DETECTION": "keypoint detection",
    "KEYPOINT_MATCHING": "keypoint matching",
    "IMAGE_MATTING": "image matting",
    "IMAGE_TO_IMAGE": "image to image",
    "MASK_GENERATION": "mask generation",
    "TEXT_RECOGNITION": "text recognition",
    "TABLE_RECOGNITION": "table recognition",
    "VISUAL_QUESTION_ANSWERING": "visual question answering",
    "DOCUMENT_QUESTION_ANSWERING": "document question answering",
    "TABLE_QUESTION_ANSWERING": "table question answering",
    "RETRIEVAL": "retrieval",
    "DECISION": "decision",
    "SEQUENCE_CLASSIFICATION": "sequence classification",
    "TOKEN_CLASSIFICATION": "token classification",
    "QUESTION_ANSWERING": "question answering",
    "MULTIPLE_CHOICE": "multiple choice",
    "MASKED_IMAGE_MODELING": "masked image modelling",
    "PRETRAINING": "pretraining",
    "BACKBONE": "backbone",
    "TEXT_ENCODING": "text encoding",
    "IMAGE": "image encoder",
}
"""Middle part of a mapping's name `MODEL_FOR_…_MAPPING_NAMES`, most meaningful head first."""


@dataclass(frozen=True)
class ModelType:
    """One row of the catalogue; the classes by name, since importing them all takes a minute.

    Attributes:
        name: the `model_type` of the configuration.
        config_class: name of the configuration class.
        model_class: name of the model class that stands for the type, "" if there is none.
        task: what the model class does, or `NO_MODEL`.
        module: the module of `transformers` that holds the model class.
    """

    name: str
    config_class: str
    model_class: str
    task: str
    module: str

    def load_config_class(self) -> type[Any]:
        """The configuration class itself; imports it."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.name]

    def load_model_class(self) -> type[Any]:
        """The model class itself; imports it.

        Raises:
            ImportError: it needs a package that is not installed, or does not exist.
        """
        import transformers

        found = getattr(transformers, self.model_class, None)
        return found or getattr(importlib.import_module(self.module), self.model_class)


@cache
def model_types() -> tuple[ModelType, ...]:
    """All model types of the installed `transformers`, in alphabetical order."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import (
        CONFIG_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    )

    tables = [
        (task, getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}))
        for name, task in _TASKS.items()
    ]
    tables.append(("base model", modeling_auto.MODEL_MAPPING_NAMES))
    return tuple(
        _row(name, CONFIG_MAPPING_NAMES[name], tables) for name in sorted(CONFIG_MAPPING_NAMES)
    )


def model_type(name: str) -> ModelType:
    """The row called `name`.

    Raises:
        InvalidModel: the installed `transformers` has no such model type.
    """
    from lxt.errors import InvalidModel

    for row in model_types():
        if row.name == name:
            return row
    import transformers

    raise InvalidModel(
        f"{name!r} is no model type of transformers {transformers.__version__}; "
        "lxt.coverage.model_types() lists them"
    )


def _row(name: str, config_class: str, tables: list[tuple[str, Any]]) -> ModelType:
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    package = f"transformers.models.{model_type_to_module_name(name)}"
    module = f"{package}.modeling_{package.rpartition('.')[2]}"
    for task, table in tables:
        if name in table:
            found = table[name]
            found = found if isinstance(found, str) else found[0]
            return ModelType(name, config_class, found, task, module)
    for file in _modeling_files(package):
        found = _classes_by_config(file).get(config_class)
        if found:
            return ModelType(name, config_class, found, "part of a model", f"{package}.{file.stem}")
    return ModelType(name, config_class, "", NO_MODEL, module)


def _modeling_files(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    return sorted(folder.glob("modeling_*.py"))


@cache
def _classes_by_config(file: Path) -> dict[str, str]:
    """Configuration class name → the last model class in `file` that is built from it.

    A class states its configuration as `config: FooConfig` or `config_class = FooConfig`, itself
    or through a base in the same file. It is read from the source, for importing a hundred
    modules to look at their classes would take far longer. Classes without a forward do not count.
    """
    configs: dict[str, str] = {}
    has_forward: set[str] = set()
    result: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        inherited = next((configs[base] for base in bases if base in configs), None)
        if inherited is None and not any("PreTrainedModel" in base for base in bases):
            continue
        own = {key: value for item in node.body for key, value in _stated(item)}
        config = own.get("config") or own.get("config_class") or inherited or ""
        configs[node.name] = config
        forward = any(
            isinstance(item, ast.FunctionDef) and item.name == "forward" for item in node.body
        )
        if forward or any(base in has_forward for base in bases):
            has_forward.add(node.name)
            result[config] = node.name
    return result


def _stated(item: ast.stmt) -> list[tuple[str, str]]:
    """What a statement in a class body says about the configuration."""
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        return [(item.target.id, ast.unparse(item.annotation).strip("'\""))]
    if isinstance(item, ast.Assign) and isinstance(item.value, ast.Name):
        return [(t.id, item.value.id) for t in item.targets if isinstance(t, ast.Name)]
    return []
