"""Learning new tasks from data, inside the subspace."""

from sharespace.learn.adapt import Attached, attach, collect, detach
from sharespace.learn.training import Fit, Recipe, fit

__all__ = ["Attached", "Fit", "Recipe", "attach", "collect", "detach", "fit"]
