"""Which task does an input belong to? A router that needs no training, for requests without a task.

``Router`` compares an input's features with statistics of each task's inputs; ``energy`` is the
alternative for tasks that came without data. Inputs of no known task go to the base model.
"""

from sharespace.route.evaluation import LabelledInputs, RoutingReport, TaskScores, evaluate
from sharespace.route.features import Statistics, features
from sharespace.route.projection import directions, energy, route_by_energy
from sharespace.route.router import RoutedInputs, Router

__all__ = [
    "LabelledInputs",
    "RoutedInputs",
    "Router",
    "RoutingReport",
    "Statistics",
    "TaskScores",
    "directions",
    "energy",
    "evaluate",
    "features",
    "route_by_energy",
]
