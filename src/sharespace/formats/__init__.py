"""Reading and writing adapters: the only place that knows key names of other formats."""

from sharespace.formats.format_registry import (
    FORMATS,
    Format,
    default_name,
    export_names,
    read_adapter,
    register_format,
    server_options,
    write_adapter,
)
from sharespace.formats.hub import download_store
from sharespace.formats.plain import ExportOptions, PlainLora

__all__ = [
    "FORMATS",
    "ExportOptions",
    "Format",
    "PlainLora",
    "default_name",
    "download_store",
    "export_names",
    "read_adapter",
    "register_format",
    "server_options",
    "write_adapter",
]
