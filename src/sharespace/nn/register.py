"""Make the method known to PEFT; importing ``sharespace.nn`` does it."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from sharespace.nn.config import ShareConfig
from sharespace.nn.model import ShareTuner
from sharespace.nn.peft_type import SHARESPACE


def register() -> None:
    """Once per process; calling it again changes nothing."""
    if SHARESPACE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="sharespace", config_cls=ShareConfig, model_cls=ShareTuner)
