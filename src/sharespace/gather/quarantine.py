"""Bad contributions: set aside with the reason beside them, and nothing else stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from sharespace.errors import SharespaceError
from sharespace.gather.contribution import NAME
from sharespace.gather.inbox import QUARANTINE, SUFFIX, Inbox


@dataclass(frozen=True)
class Refusal:
    """A contribution that was set aside."""

    file: str
    """Name within ``quarantine/``; the reason is in ``<file>.json``."""
    task: str | None
    """As far as it could be read."""
    error: str
    """Class of the error."""
    what: str
    why: str
    remedy: str


def set_aside(
    inbox: Inbox, name: str, error: SharespaceError, task: str | None, data: bytes | None
) -> Refusal:
    """Write the reason, then move the file beside it.

    Killed in between, the file is still in the inbox and will be looked at again. To try once more
    after a remedy, move it back from ``quarantine/`` into the inbox.

    Args:
        data: the file's bytes; None: they were not read.
    """
    file = _quarantine_name(name, data)
    refusal = Refusal(file, task, type(error).__name__, error.what, error.why, error.remedy)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = {**asdict(refusal), "submitted_as": name, "time": now}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    inbox.write(f"{QUARANTINE}/{file}.json", text.encode("ascii"))
    inbox.move(name, f"{QUARANTINE}/{file}")
    return refusal


def _quarantine_name(name: str, data: bytes | None) -> str:
    """The file's own name, made unique by its bytes where the name does not say them already."""
    if data is None:
        return name
    digest = hashlib.sha256(data).hexdigest()
    match = NAME.fullmatch(name)
    if match and match["sha256"] == digest:
        return name
    return f"{name.removesuffix(SUFFIX)[:150]}.{digest[:12]}{SUFFIX}"
