"""How well a stream was learned: scores, measures, similarity of subspaces, sizes; no training."""

from sharespace.evaluate.matrix import ScoreMatrix
from sharespace.evaluate.metrics import Metric, metric
from sharespace.evaluate.settling import StepChange, settling
from sharespace.evaluate.similarity import CkaMatrix, adapters_cka, linear_cka, principal_angles
from sharespace.evaluate.trainer import compute_metrics_for

__all__ = [
    "CkaMatrix",
    "Metric",
    "ScoreMatrix",
    "StepChange",
    "adapters_cka",
    "compute_metrics_for",
    "linear_cka",
    "metric",
    "principal_angles",
    "settling",
]
