"""Reading and writing adapters: the only place that knows key names of other formats."""

from sharespace.formats.diffusers import write_diffusers
from sharespace.formats.hub import download_store
from sharespace.formats.peft import write_peft
from sharespace.formats.plain import ExportOptions, PlainLora
from sharespace.formats.registry import (
    TARGETS,
    default_name,
    read_adapter,
    server_options,
    write_as,
)

__all__ = [
    "TARGETS",
    "ExportOptions",
    "PlainLora",
    "default_name",
    "download_store",
    "read_adapter",
    "server_options",
    "write_as",
    "write_diffusers",
    "write_peft",
]
