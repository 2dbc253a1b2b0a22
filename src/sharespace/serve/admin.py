"""Tasks that come and go while the server runs."""

from __future__ import annotations

import threading
from pathlib import Path

from sharespace.errors import OptionError
from sharespace.serve.engine import Engine
from sharespace.share import Share


class Admin:
    """Changes the Share model of an engine, one change at a time.

    With a path every change is committed to the store first: what is served is what is stored.
    """

    def __init__(self, engine: Engine, path: Path | None) -> None:
        self.engine = engine
        self.path = path
        self._lock = threading.Lock()

    def add(self, name: str, adapter: str) -> Share:
        """Merge an adapter as a new task.

        Raises:
            TaskExistsError: there is a task of that name.
            AdapterError: it cannot be read.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            return self._changed(self.engine.share.merge({name: adapter}))

    def remove(self, name: str) -> Share:
        """Without a task; batches that run go on with it.

        Raises:
            TaskNotFoundError: there is none of that name.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            return self._changed(self.engine.share.remove(name))

    def reload(self) -> Share:
        """The store's current version.

        Raises:
            OptionError: the Share model is not of a store.
            StoreError: it cannot be read; the version before stays in place.
        """
        with self._lock:
            if self.path is None:
                raise OptionError("reload", "the Share model is of no store", "Serve a path")
            share = Share.load(self.path)
            self.engine.replace(share)
            return share

    def _changed(self, share: Share) -> Share:
        if self.path is not None:
            share.save(self.path)
        self.engine.replace(share)
        return share
