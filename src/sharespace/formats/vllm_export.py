"""Plain LoRA as a PEFT folder that vLLM takes as it is.

The rules are those of vLLM 0.32 (``vllm/lora/peft_helper.py``, ``lora_model.py`` and
``vllm/config/lora.py``). It checks neither shapes nor that every layer was found; the factors have
one rank and scaling 1 here, so that it has no pattern to match.
"""

from __future__ import annotations

from pathlib import Path

from sharespace.errors import OptionError
from sharespace.formats.atomic_dir import new_directory
from sharespace.formats.export_options import ExportOptions
from sharespace.formats.plain import PlainLora, common_rank
from sharespace.formats.plain_only import refuse_beyond_lora, served_fields, write_served

VLLM = "vLLM"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be; vLLM's default is 16."""


def max_lora_rank(rank: int) -> int:
    """The smallest ``--max-lora-rank`` that takes an adapter of this rank.

    Raises:
        OptionError: there is none.
    """
    fitting = [limit for limit in MAX_LORA_RANKS if limit >= rank]
    if not fitting:
        raise OptionError(
            f"rank {rank}",
            f"{VLLM} takes at most {MAX_LORA_RANKS[-1]}",
            "Build the Share model with a smaller k",
        )
    return fitting[0]


def write_vllm(directory: Path, lora: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for vLLM.

    Args:
        directory: where to; made whole or not at all.
        lora: the task.
        options: rank, dtype and whether to overwrite.

    Returns:
        The directory.

    Raises:
        UnsupportedAdapterError: the task is more than LoRA of linear layers.
        OptionError: nothing to write, no rank that vLLM takes, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    refuse_beyond_lora(lora, VLLM)
    rank = common_rank(lora.updates, options.rank)
    max_lora_rank(rank)
    with new_directory(directory, overwrite=options.overwrite) as aside:
        write_served(aside, lora, served_fields(lora, rank), options.dtype)
    return [directory]
