"""Reading and writing adapters: the only place that knows key names of other formats."""

from sharespace.formats.detect import default_name, read_adapter
from sharespace.formats.diffusers_export import write_diffusers
from sharespace.formats.hub import download_store
from sharespace.formats.peft_export import write_peft

__all__ = ["default_name", "download_store", "read_adapter", "write_diffusers", "write_peft"]
