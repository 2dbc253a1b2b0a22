"""The PEFT method: train and run tasks in a Share model's subspace.

Importing this package makes the method known to PEFT, so that ``PeftModel.from_pretrained`` and
``AutoPeftModel`` load what was saved.
"""

from sharespace.nn.bases import publish
from sharespace.nn.batch import MixedTasks
from sharespace.nn.collect import collect, kept_tensors, layers_of, trained_coefficients
from sharespace.nn.config import ShareConfig
from sharespace.nn.layer import SubspaceConv, SubspaceLayer, SubspaceLinear
from sharespace.nn.model import ShareTuner
from sharespace.nn.modules import applied, is_transposed
from sharespace.nn.register import register
from sharespace.nn.release import release

register()

__all__ = [
    "MixedTasks",
    "ShareConfig",
    "ShareTuner",
    "SubspaceConv",
    "SubspaceLayer",
    "SubspaceLinear",
    "applied",
    "collect",
    "is_transposed",
    "kept_tensors",
    "layers_of",
    "publish",
    "register",
    "release",
    "trained_coefficients",
]
