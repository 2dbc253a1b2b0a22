"""The PEFT method: train and run tasks in a Share model's subspace.

Importing this package makes the method known to PEFT, so that ``PeftModel.from_pretrained`` and
``AutoPeftModel`` load what was saved.
"""

from sharespace.extras import missing_module

try:
    from sharespace.tuner.bases import publish
    from sharespace.tuner.collect import (
        base_samples_of,
        collect,
        kept_tensors,
        layers_of,
        trained_coefficients,
        vocabulary_resized,
    )
    from sharespace.tuner.compose import hotswap_task, rescale_adapter_scale
    from sharespace.tuner.config import ShareConfig
    from sharespace.tuner.model import ShareTuner, register
    from sharespace.tuner.modules import applied, is_transposed, release
    from sharespace.tuner.subspace_layer import SubspaceConv, SubspaceLayer, SubspaceLinear
except ModuleNotFoundError as error:
    # Everything above that trains imports this package, so that it is said here for all of it.
    raise missing_module(error, "train") from error

register()

__all__ = [
    "ShareConfig",
    "ShareTuner",
    "SubspaceConv",
    "SubspaceLayer",
    "SubspaceLinear",
    "applied",
    "base_samples_of",
    "collect",
    "hotswap_task",
    "is_transposed",
    "kept_tensors",
    "layers_of",
    "publish",
    "register",
    "release",
    "rescale_adapter_scale",
    "trained_coefficients",
    "vocabulary_resized",
]
