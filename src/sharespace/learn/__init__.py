"""Learning tasks from data, inside the subspace, on the Trainer of transformers."""

from sharespace.learn.adapt import Adapted, adapt
from sharespace.learn.calibrate import Calibrated, calibrate
from sharespace.learn.directions import choose_directions
from sharespace.learn.finetune import Finetuned, finetune, load_task
from sharespace.learn.merging import contribute, merge_from
from sharespace.learn.prepare import Trainable, prepare
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.learn.starts import Candidate, StartChoice
from sharespace.learn.training import Fit, RateChoice, RateTrial, Setup, fit

__all__ = [
    "Adapted",
    "Calibrated",
    "Candidate",
    "Finetuned",
    "Fit",
    "RateChoice",
    "RateTrial",
    "Setup",
    "StartChoice",
    "TaskMethod",
    "Trainable",
    "TrainingSettings",
    "adapt",
    "calibrate",
    "choose_directions",
    "contribute",
    "finetune",
    "fit",
    "load_task",
    "merge_from",
    "prepare",
]
