"""Explanations in the shapes that other tools take: pandas, Neuronpedia, Captum.

All of them are of single explanations, one after the other: of each row of a batch, without its
padding, for each of its targets, and in each layer.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from lxt.errors import MissingPackage
from lxt.storage import write
from lxt.tokens import printable

if TYPE_CHECKING:
    import pandas

    from lxt.explained import ExplainedTarget
    from lxt.explanation import Explanation

__all__ = ["captum_fields", "captum_records", "to_dataframe", "to_neuronpedia"]


def to_dataframe(explanation: Explanation) -> pandas.DataFrame:
    """Return a table with one line for each token, of each row, target and layer.

    Its columns are ``row``, ``target`` (both counted from 0) and ``layer`` (its name), as far as
    there are such axes; ``position`` (counted from 0 without padding), ``token``, ``token_id``,
    ``relevance`` (in units of the target's value, in the type that it has) and ``share`` (of the
    sum of all |relevance| of that row, target and layer, from 0 to 1; 0 where that sum is).

    Raises:
        MissingPackage: pandas can't be imported.

    """
    try:
        import pandas
    except ImportError as error:
        raise MissingPackage(
            f"pandas can't be imported ({error}): pip install lxt[pandas]"
        ) from error
    columns: dict[str, list[Any]] = {
        name: [] for name in ("row", "target", "layer", "position", "token", "token_id", "share")
    }
    relevance = [explanation.relevance.new_zeros(0)]
    for (row, target, layer), single in _singles(explanation):
        count = len(single.tokens)
        columns["row"] += [row] * count
        columns["target"] += [target] * count
        columns["layer"] += [layer] * count
        columns["position"] += range(count)
        columns["token"] += single.tokens
        columns["token_id"] += single.token_ids.tolist()
        columns["share"] += _shares(single)
        relevance.append(single.relevance)
    integers = ["row", "target", "position", "token_id"]
    present = {"batch": "row", "targets": "target", "layers": "layer"}
    left_out = {name for axis, name in present.items() if axis not in explanation.axes}
    # "object" leaves labels as they are, also those that are no Unicode text.
    kinds = dict.fromkeys(integers, "int64") | {"layer": "object", "token": "object"}
    content = {
        name: pandas.Series(values, dtype=cast("Any", kinds.get(name, "float64")))
        for name, values in columns.items()
        if name not in left_out
    }
    share = content.pop("share")
    return pandas.DataFrame(content | {"relevance": torch.cat(relevance).numpy(), "share": share})


def to_neuronpedia(explanation: Explanation, path: str | os.PathLike[str] | None = None) -> str:
    """Return activation records as JSON Lines, and write them to ``path`` if given.

    One line for each explanation, with what Neuronpedia's exports of activations hold of a text:
    ``tokens``, ``values`` (here relevance), ``maxValue``, ``maxValueTokenIndex``, ``minValue``; and
    ``layer`` where there are layers. What is there a feature's is not here: ``modelId``, ``index``.
    Values are signed, and tools made for activations may take those below 0 for 0.

    Raises:
        UnwritableFile: the file can't be written; one that was there is left as it was.

    """
    lines = []
    for (_, _, layer), single in _singles(explanation):
        values = single.relevance.tolist()
        largest = max(values, default=0.0)
        record = {
            "tokens": single.tokens,
            "values": values,
            "maxValue": largest,
            "maxValueTokenIndex": values.index(largest) if values else 0,
            "minValue": min(values, default=0.0),
        }
        lines.append(json.dumps(record if layer is None else record | {"layer": layer}) + "\n")
    text = "".join(lines)
    if path is not None:
        write(path, text.encode())
    return text


def captum_fields(explanation: Explanation) -> list[dict[str, Any]]:
    """Return the fields of Captum's ``VisualizationDataRecord``; Captum isn't needed for it.

    ``word_attributions`` is relevance with the largest |relevance| as 1, which full colour is
    there; ``attr_class`` is the target and ``attr_score`` the sum of relevance, ``pred_class`` the
    model's prediction, ``convergence_score`` the target's value less that sum. An explanation
    knows neither a probability nor a true class: ``pred_prob`` is NaN and ``true_class`` is
    ``"unknown"``, for the caller to put in. Captum writes texts into a page as they are, and so
    they are escaped for HTML here.
    """
    fields = []
    for _, single in _singles(explanation):
        target = cast("ExplainedTarget", single.target)
        scale = single.relevance.abs().max().item() if len(single) else 0.0
        total = single.total.item()
        fields.append(
            {
                "word_attributions": single.relevance / (scale or 1.0),
                "pred_prob": math.nan,
                "pred_class": _for_a_page(target.prediction),
                "true_class": "unknown",
                "attr_class": _for_a_page(target.name),
                "attr_score": total,
                "raw_input_ids": [_for_a_page(token) for token in cast("list[str]", single.tokens)],
                "convergence_score": target.value - total,
            }
        )
    return fields


def captum_records(explanation: Explanation) -> list[Any]:
    """Return records for ``captum.attr.visualization.visualize_text``, see ``captum_fields``.

    Raises:
        MissingPackage: Captum can't be imported.

    """
    try:
        from captum.attr import visualization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackage(f"Captum can't be imported ({error}): pip install captum") from error
    return [visualization.VisualizationDataRecord(**one) for one in captum_fields(explanation)]


def _singles(
    explanation: Explanation,
) -> Iterator[tuple[tuple[int, int, str | None], Explanation]]:
    """Go through all explanations of one row, target and layer, with these."""
    for row, one in enumerate(explanation.inputs()):
        for target, of_target in enumerate(one if one.is_many else [one]):
            if of_target.layers is None:
                yield (row, target, None), of_target
            else:
                for layer, of_layer in zip(of_target.layers, of_target, strict=True):
                    yield (row, target, layer), of_layer


def _shares(single: Explanation) -> list[float]:
    absolute = single.relevance.double().abs()
    scale = absolute.max().item() if len(single) else 0.0
    if not scale:
        return [0.0] * len(single)
    absolute = absolute / scale  # the sum of numbers near the largest float would be infinite
    return (absolute / absolute.sum()).tolist()


def _for_a_page(text: str) -> str:
    return html.escape(printable(text))
