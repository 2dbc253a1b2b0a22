"""Which task does an input belong to? A router without training, for when nobody says.

Statistics of each task's features make a linear discriminant (``Router``); ``energy`` is the
alternative for tasks that came without data. Inputs of no known task go to the base model.
"""

from sharespace.route.evaluation import Examples, RoutingReport, TaskScores, evaluate
from sharespace.route.features import features
from sharespace.route.projection import directions, energy, route_by_energy
from sharespace.route.router import Router, Routing
from sharespace.route.router_file import Statistics

__all__ = [
    "Examples",
    "Router",
    "Routing",
    "RoutingReport",
    "Statistics",
    "TaskScores",
    "directions",
    "energy",
    "evaluate",
    "features",
    "route_by_energy",
]
