"""How well a stream was learned: scores, measures, similarity of subspaces, sizes; no training."""

from sharespace.evaluate.matrix import ScoreMatrix
from sharespace.evaluate.metrics import Metric, metric
from sharespace.evaluate.trainer import compute_metrics_for

__all__ = ["Metric", "ScoreMatrix", "compute_metrics_for", "metric"]
