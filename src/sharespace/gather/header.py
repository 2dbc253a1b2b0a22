"""The header of a contribution's file: found, and believed only as far as it was checked."""

from __future__ import annotations

import hashlib

from sharespace.errors import ContributionError
from sharespace.gather.contribution import NAME
from sharespace.store.fields import Fields, parse_json
from sharespace.store.objects import METADATA_KEY

FORMAT = "sharespace-contribution"
SCHEMA_VERSION = 1
MAX_HEADER = 1 << 24
"""Bytes of a file's JSON header."""
AGAIN = "Hand it in again"


def check_hash(data: bytes, name: str) -> None:
    """Refuse bytes that are not those of the hash in the file's name, where there is one."""
    match = NAME.fullmatch(name)
    if match and hashlib.sha256(data).hexdigest() != match["sha256"]:
        why = "its bytes are not those that its name says (sha256): damaged, or cut short"
        raise ContributionError(name, why, AGAIN)


def data_start(data: bytes) -> int:
    """Where the tensors begin."""
    return 8 + int.from_bytes(data[:8], "little")


def metadata_bytes(data: bytes) -> bytes:
    """The JSON text in a file's header; read by us, because libraries hide duplicate keys.

    Raises:
        ContributionError: no safetensors file, cut short, or not a contribution.
        CorruptStoreError: the header is not JSON.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise ContributionError("the file", "not a safetensors file", AGAIN)
    if size > MAX_HEADER:
        why = f"a header of {size} bytes, more than the {MAX_HEADER} it may have"
        raise ContributionError("the file", why, "Leave out what is no contribution")
    if size > len(data) - 8:
        why = f"cut short: {len(data)} bytes with a header of {size}"
        raise ContributionError("the file", why, AGAIN)
    header = parse_json(data[8 : 8 + size], "the header")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        why = "a safetensors file, but not a contribution"
        raise ContributionError("the file", why, "`sharespace submit` makes contributions")
    return text.encode("utf-8", "surrogatepass")


def check_marks(fields: Fields) -> None:
    """Refuse other formats, and schema versions that this release does not read."""
    fields.one_of("format", FORMAT)
    found = fields.whole("schema_version", least=1)
    if found > SCHEMA_VERSION:
        why = f"written in schema version {found}; this release reads up to {SCHEMA_VERSION}"
        raise ContributionError("the file", why, "Upgrade: pip install -U sharespace")
