"""Gradients along time: where they are right, and what a truncation does to them."""

from gradaudit.lens.bias import bias_curve
from gradaudit.lens.curves import BiasCurve, BiasPoint, SemanticsCurve

__all__ = ["BiasCurve", "BiasPoint", "SemanticsCurve", "bias_curve"]
