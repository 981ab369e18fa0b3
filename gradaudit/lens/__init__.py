"""What a truncation in time does to a gradient: the bias of every length."""

from gradaudit.lens.bias import bias_curve
from gradaudit.lens.curves import BiasCurve, BiasPoint, SemanticsCurve

__all__ = ["BiasCurve", "BiasPoint", "SemanticsCurve", "bias_curve"]
