"""How well a stream was learned: scores, measures, similarity of subspaces, sizes; no training."""

from sharespace.evaluate.matrix import ScoreMatrix

__all__ = ["ScoreMatrix"]
