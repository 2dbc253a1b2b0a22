"""Write a report: the whole file or none."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from sharespace.errors import OptionError
from sharespace.page.reading import read_facts
from sharespace.page.report import render
from sharespace.page.warnings import Notice, notices


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    path: Path
    bytes: int
    version: int
    """Of the Share model."""
    notices: tuple[Notice, ...]
    """What it warns of."""


def write(
    share: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    version: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Write the report of a stored Share model.

    Args:
        share: the store.
        out: a new file.
        version: an earlier version's number; None: the current one.
        overwrite: replace a file that is there.

    Raises:
        OptionError: there is something at ``out``, or it cannot be written.
        StoreNotFoundError, CorruptStoreError, SchemaVersionError: see ``sharespace.errors``.
        MissingExtraError: scipy is not installed (extra ``report``).
    """
    target = Path(out)
    _refuse(target, overwrite)
    facts = read_facts(share, version)
    data = render(facts).encode()
    try:
        _replace(target, data)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise OptionError(str(target), why, "Check the path") from error
    return Written(target, len(data), facts.version, notices(facts))


def _refuse(target: Path, overwrite: bool) -> None:
    """Before any work is done."""
    if target.is_dir():
        raise OptionError(str(target), "is a directory", "Name a file, for example report.html")
    if not target.parent.is_dir():
        raise OptionError(str(target), "its directory is not there", "Make it first")
    if os.path.lexists(target) and not overwrite:
        raise OptionError(
            str(target), "is there already", "Give another one, or overwrite it (--overwrite)"
        )


def _replace(target: Path, data: bytes) -> None:
    """Write beside, then rename: a reader never sees half a page."""
    aside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(data)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
