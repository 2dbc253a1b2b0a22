"""Reading and writing adapters: the only place that knows key names of other formats."""

from sharespace.formats.detect import default_name, read_adapter
from sharespace.formats.diffusers_export import write_diffusers
from sharespace.formats.export_options import ExportOptions
from sharespace.formats.hub import download_store
from sharespace.formats.peft_export import write_peft
from sharespace.formats.plain import PlainLora
from sharespace.formats.targets import TARGETS, server_options, write_as

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
