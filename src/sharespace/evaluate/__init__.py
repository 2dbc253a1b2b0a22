"""How well a stream was learned: scores, measures, similarity of subspaces, sizes; no training."""

from sharespace.evaluate.basis_changes import StepChange, settling
from sharespace.evaluate.comparison import Comparison, Cost, Row
from sharespace.evaluate.matrix import ScoreMatrix
from sharespace.evaluate.metrics import Metric, metric
from sharespace.evaluate.similarity import CkaMatrix, adapters_cka, linear_cka, principal_angles
from sharespace.evaluate.size import Layout, bytes_on_disk, claims, reach
from sharespace.evaluate.table import claims_markdown, markdown, rich_table
from sharespace.evaluate.trainer import compute_metrics_for

__all__ = [
    "CkaMatrix",
    "Comparison",
    "Cost",
    "Layout",
    "Metric",
    "Row",
    "ScoreMatrix",
    "StepChange",
    "adapters_cka",
    "bytes_on_disk",
    "claims",
    "claims_markdown",
    "compute_metrics_for",
    "linear_cka",
    "markdown",
    "metric",
    "principal_angles",
    "reach",
    "rich_table",
    "settling",
]
