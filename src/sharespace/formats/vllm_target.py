"""Plain LoRA as a PEFT folder that vLLM takes as it is.

The rules are those of vLLM 0.32 (``vllm/lora/peft_helper.py``, ``lora_model.py`` and
``vllm/config/lora.py``). It checks neither shapes nor that every layer was found; the factors have
one rank and scaling 1 here, so that it has no pattern to match.
"""

from __future__ import annotations

from pathlib import Path

from sharespace.errors import OptionError
from sharespace.files import export_directory
from sharespace.formats.engines import (
    refuse_beyond_lora,
    served_fields,
    write_served,
    written_rank,
)
from sharespace.formats.plain import ExportOptions, PlainLora, common_rank

VLLM = "vLLM"

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be; vLLM's default is 16."""


def write_vllm(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    """Write a task for vLLM.

    Args:
        path: the directory; made whole or not at all.
        plain: the task.
        options: rank, dtype and whether to overwrite.

    Returns:
        The directory.

    Raises:
        UnsupportedAdapterError: the task is more than LoRA of linear layers.
        OptionError: nothing to write, no rank that vLLM takes, or the directory is in use.
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    refuse_beyond_lora(plain, VLLM)
    rank = common_rank(plain.updates, options.rank)
    max_lora_rank(rank)
    with export_directory(path, overwrite=options.overwrite) as aside:
        write_served(aside, plain, served_fields(plain, rank), options.dtype)
    return [path]


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


def vllm_options(written: list[Path]) -> list[str]:
    """What vLLM has to be started with to take an export."""
    return ["--enable-lora", "--max-lora-rank", str(max_lora_rank(written_rank(written)))]
