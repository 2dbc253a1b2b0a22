"""What the folder of a run keeps for a router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sharespace.errors import CorruptStoreError
from sharespace.store import atomic
from sharespace.stream.files import ROUTER, read_json, read_whole, write_json

_RECORD = "router.json"
_MOST_BYTES = 1 << 34


@dataclass(frozen=True)
class RouterFiles:
    """Features of tasks, and the router of all of them with its scores."""

    path: Path
    """The run's folder."""

    @property
    def features(self) -> Path:
        """Folder of what is taken of each task."""
        return self.path / "features"

    @property
    def router(self) -> Path:
        """The router of the last step."""
        return self.path / ROUTER

    def keep_features(self, data: bytes) -> str:
        """Write what a router takes of a task, before the step's record names it.

        Returns:
            Its name.
        """
        name = sha256(data).hexdigest()
        atomic.write_files(self.features, [(name, [data])])
        return name

    def read_features(self, name: str) -> bytes:
        """What ``keep_features`` wrote.

        Raises:
            CorruptStoreError: it is gone, or its bytes have changed.
        """
        path = self.features / name
        data = read_whole(path, _MOST_BYTES)
        if sha256(data).hexdigest() != name:
            raise CorruptStoreError(str(path), "its bytes changed", "Bring it back as it was")
        return data

    def keep_record(self, record: Mapping[str, Any], content: str) -> None:
        """Write down the router's scores, after the router itself.

        Args:
            content: of the version that they are of.
        """
        write_json(self.path, _RECORD, {"content": content, "router": record})

    def record(self, content: str) -> Mapping[str, Any] | None:
        """The scores of the router of that version; None: it is yet to be made."""
        path = self.path / _RECORD
        if not path.exists() or not self.router.exists():
            return None
        found = read_json(path)
        try:
            record: Mapping[str, Any] = found["router"]
            return record if found["content"] == content else None
        except (TypeError, KeyError) as error:
            why = f"no record of a router ({error})"
            raise CorruptStoreError(str(path), why, "Remove it: it is made again") from error
