"""Layer-wise Relevance Propagation for any PyTorch transformer.

>>> import lxt
>>> model, tokenizer, _ = lxt.load_model()
>>> print(lxt.explain(model, "The capital of France is", tokenizer=tokenizer))
"""

import importlib
from typing import TYPE_CHECKING, Any

from lxt import errors, gradients, rules
from lxt._version import __version__
from lxt.audit import audit
from lxt.auditing.report import Report
from lxt.comparison import Comparison, compare
from lxt.composite import Composite
from lxt.composites import attnlrp, cp_lrp, gradient
from lxt.explain import explain
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.geometry import Geometry
from lxt.image_explanation import ImageExplanation
from lxt.latent.edits import Add, Edit, Scale, Set
from lxt.latent.features import Features
from lxt.latent.relevance import Latent
from lxt.latent.sae import SAE
from lxt.latent.steering import steer
from lxt.latent.taps import Experts, Heads, Neurons, Residual, Tap
from lxt.latent.trace import trace
from lxt.latent.units import Site, Unit
from lxt.models import load_model
from lxt.propagation import Propagation
from lxt.rules import rule, sample
from lxt.structure import ClassPath, Having, OperatorName, Signature, Within
from lxt.targets import Contrast, Every, Label, Logit, Prediction

__all__ = [
    "SAE",
    "Add",
    "Atlas",
    "ClassPath",
    "Comparison",
    "Composite",
    "Contrast",
    "Edit",
    "Every",
    "Experts",
    "ExplainedTarget",
    "Explanation",
    "Features",
    "Geometry",
    "Having",
    "Heads",
    "ImageExplanation",
    "Label",
    "Latent",
    "Logit",
    "Neurons",
    "OperatorName",
    "Prediction",
    "Propagation",
    "Report",
    "Residual",
    "Scale",
    "Set",
    "Signature",
    "Site",
    "Tap",
    "Unit",
    "Within",
    "__version__",
    "attnlrp",
    "audit",
    "compare",
    "cp_lrp",
    "errors",
    "explain",
    "gradient",
    "gradients",
    "load_model",
    "rule",
    "rules",
    "sample",
    "steer",
    "trace",
]

if TYPE_CHECKING:
    from lxt import efficient, evaluate, explicit, exports, testing, utils  # noqa: F401 - imported when first asked for
    from lxt.atlas.atlas import Atlas
else:

    def __getattr__(name: str) -> Any:
        if name == "Atlas":
            return importlib.import_module("lxt.atlas.atlas").Atlas
        if name in ("efficient", "evaluate", "explicit", "exports", "testing", "utils"):
            return importlib.import_module(f"lxt.{name}")
        raise AttributeError(f"module 'lxt' has no attribute {name!r}")
