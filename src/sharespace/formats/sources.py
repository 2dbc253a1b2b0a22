"""Whatever names adapters (paths, Hub ids, adapters that are open already), opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from sharespace.formats.detect import default_name, read_adapter
from sharespace.subspace.adapter import Adapter

Source: TypeAlias = "str | os.PathLike[str] | Adapter"
Sources: TypeAlias = "Source | Iterable[Source] | Mapping[str, Source]"


def open_adapters(sources: Sources) -> list[Adapter]:
    """Open whatever was given; adapters that are open already pass through.

    Raises:
        AdapterError: one of them cannot be read.
    """
    if isinstance(sources, str | os.PathLike | Adapter):
        sources = [sources]
    if isinstance(sources, Mapping):
        return [_adapter(source, name) for name, source in sources.items()]
    return [_adapter(source, None) for source in sources]


def _adapter(source: Source, name: str | None) -> Adapter:
    if isinstance(source, Adapter):
        return source if name is None else source.with_name(name)
    return read_adapter(source, default_name(source) if name is None else name)
