"""Where the layers of a build or merge are computed: here, or on the processes of a Dask cluster.

Dask (https://distributed.dask.org) gets each piece of work as bytes. A tensor travels without the
rest of its storage (a basis is a view of a whole mapped file) and with the strides that it has:
another order of the same numbers in memory may round differently.
"""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sharespace.errors import ClusterError, OptionError, SharespaceError
from sharespace.extras import require

Item = TypeVar("Item")

Result = TypeVar("Result")


class Local:
    """One item after the other in this process: nothing is copied, one item in memory."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The results in the items' order, each computed when it is asked for.

        Args:
            function: called with one item at a time.
            items: drawn one by one, as results are asked for.
        """
        return map(function, items)


LOCAL = Local()
"""What runs where no executor is given."""

_LOOK = 1.0
"""Seconds between two looks whether the cluster is still there."""

_AHEAD = 2
"""Items in flight for each thread of the cluster: one that runs and one that waits for it."""

_NO_WARNING = {"distributed.admin.large-graph-warning-threshold": "1PB"}
"""Adapters in memory travel with their layer; Dask would advise to scatter them, but what is
scattered to a worker is lost with it."""

_ENVIRON = "distributed.nanny.pre-spawn-environ"

_QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}
"""What goes wrong in a worker is raised here; it does not also write to the terminal."""


class Executor(Protocol):
    """Runs independent pieces of work."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The results in the items' order, as they become available.

        Args:
            function: of a module, without state, so that any process can run it, even twice.
            items: drawn only as far as there is room for more work.

        Raises:
            SharespaceError: whatever the function raises of it, unchanged; the first by the
                items' order. No further item is drawn.
        """
        ...


class Dask:
    """Runs pieces of work on a cluster; use it in a ``with`` block, or close it.

    A piece whose worker dies is done again by another. The workers read adapters themselves, by
    absolute path, so all machines need the same file system. Scripts that start local processes
    need ``if __name__ == "__main__":``, as with ``multiprocessing``.

    Args:
        workers: how many processes to start on this machine, each with one thread; or the address
            of a scheduler, such as ``"tcp://10.0.0.1:8786"``.
        threads: of torch in a worker. Results are those of a local run with as many.
        patience: seconds to wait for a scheduler, and for workers when there is none.

    Raises:
        ClusterError: no scheduler at the address, or no worker came.
        OptionError: fewer than one process.
        MissingExtraError: Dask is not installed.
    """

    def __init__(self, workers: int | str, *, threads: int = 1, patience: float = 60.0) -> None:
        self._dask = require("dask", "cluster")
        self._distributed = require("distributed", "cluster")
        self._threads, self._patience = threads, patience
        self._seen = time.monotonic()
        self._cluster = None if isinstance(workers, str) else self._local(workers)
        try:
            self._client = self._connect(workers)
        except BaseException:
            self._close_cluster()
            raise

    def _local(self, workers: int) -> Any:
        """Processes on this machine, behind certificates that only this process has."""
        if workers < 1:
            raise OptionError(f"{workers} workers", "there must be at least one")
        known = self._dask.config.get(_ENVIRON)
        with self._dask.config.set({_ENVIRON: known | _QUIET}):
            return self._distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,  # the default, a share of the memory, would stop large layers
                security=self._distributed.Security.temporary(),
            )

    def _connect(self, workers: int | str) -> Any:
        where = workers if self._cluster is None else self._cluster
        try:
            client = self._distributed.Client(
                where, timeout=self._patience, set_as_default=False, name="sharespace"
            )
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise ClusterError(
                f"Dask scheduler {workers}",
                f"cannot be reached ({_first_line(error)})",
                "Start one with `dask scheduler`, and give the address that it prints",
            ) from error
        return client

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """See ``Executor.map``; twice as many items are in flight as the cluster has threads.

        Args:
            function: of a module, without state; see ``Executor.map``.
            items: drawn only as far as there is room for more work.

        Raises:
            ClusterError: the cluster is gone, or an item killed every worker that tried it.
        """
        flying: deque[Any] = deque()
        try:
            for item in items:
                while len(flying) >= self._room():
                    yield self._result(flying[0])
                    flying.popleft()
                flying.append(self._submit(function, item))
            while flying:
                yield self._result(flying[0])
                flying.popleft()
        finally:
            self._forget(flying)

    def close(self) -> None:
        """Leave the cluster; processes that were started here end."""
        self._client.close()
        self._close_cluster()

    def __enter__(self) -> Dask:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Any:
        with self._dask.config.set(_NO_WARNING):
            return self._client.submit(
                run, versions(), self._threads, dumps((function, item)), pure=False
            )

    def _result(self, future: Any) -> Any:
        """What a piece of work gave; waits as long as there are workers."""
        while True:
            try:
                result = loads(future.result(timeout=_LOOK))
            except (TimeoutError, asyncio.TimeoutError):
                self._room()
            except self._distributed.KilledWorker as error:
                raise ClusterError(
                    "a layer",
                    f"{error.allowed_failures + 1} workers died on it, one after the other",
                    "Most likely it needs more memory: fewer workers, or machines with more",
                ) from error
            except (OSError, asyncio.CancelledError, self._distributed.CancelledError) as error:
                raise _gone(error) from error
            except ImportError as error:
                raise ClusterError(
                    "a worker", _first_line(error), "Install the same sharespace on every machine"
                ) from error
            else:
                if isinstance(result, SharespaceError):
                    raise result
                return result

    def _room(self) -> int:
        """How many items may be in flight now.

        Raises:
            ClusterError: there was no worker for too long, or the scheduler does not answer.
        """
        try:
            threads: int = sum(self._client.nthreads().values())
        except (OSError, asyncio.TimeoutError, RuntimeError) as error:
            raise _gone(error) from error
        now = time.monotonic()
        if threads:
            self._seen = now
        elif now - self._seen > self._patience:
            raise ClusterError(
                "the Dask cluster",
                f"it has had no worker for {self._patience:.0f} s",
                "Start workers with `dask worker ADDRESS --nthreads 1`, and repeat",
            )
        return max(_AHEAD * threads, 1)

    def _forget(self, flying: Iterable[Any]) -> None:
        """Take back what nobody waits for any more."""
        if self._client.status == "running":
            self._client.cancel(list(flying))

    def _close_cluster(self) -> None:
        if self._cluster is None:
            return
        log = logging.getLogger("distributed.nanny")
        before = log.level
        log.setLevel(logging.ERROR)  # on a busy machine: that a worker took long to end
        try:
            self._cluster.close()
        finally:
            log.setLevel(before)


def versions() -> tuple[str, str]:
    """Of sharespace and torch here."""
    return version("sharespace"), torch.__version__


def run(wanted: tuple[str, str], threads: int, job: bytes) -> bytes:
    """On a worker: do a piece of work. An error of sharespace is a result, too.

    Args:
        wanted: versions of sharespace and torch where the result is used.
        threads: of torch.
        job: (function, item) as ``dumps`` gives it.
    """
    if wanted != versions():
        here, there = " and torch ".join(versions()), " and torch ".join(wanted)
        return dumps(
            ClusterError(
                "a worker",
                f"it has sharespace {here}, not {there}, so that results may differ",
                "Install the same versions on every machine",
            )
        )
    torch.set_num_threads(threads)
    try:
        function, item = loads(job)
        return dumps(function(item))
    except SharespaceError as error:
        return dumps(error)


def _gone(error: BaseException) -> ClusterError:
    return ClusterError(
        "the Dask cluster",
        f"its scheduler does not answer any more ({_first_line(error)})",
        "Nothing was written; start the scheduler again, and repeat",
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def dumps(value: Any) -> bytes:
    """The value as bytes; tensors of any device go to the CPU."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(value)
    return stream.getvalue()


def loads(data: bytes) -> Any:
    """The value again.

    Unpickling runs code, so the bytes must come from ``dumps`` in a process that is trusted as
    this one is; the processes of a Dask cluster trust each other anyway.
    """
    return pickle.loads(data)  # noqa: S301 - see above


class _Pickler(pickle.Pickler):
    """Pickle, with tensors and read-only mappings by value."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor, _parts(value)
        if isinstance(value, MappingProxyType):
            return _read_only, (dict(value),)
        return NotImplemented


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def _parts(tensor: Tensor) -> tuple[Any, ...]:
    """(bytes, dtype, shape, strides); the bytes from the first number used to the last."""
    tensor = tensor.detach().cpu()
    shape, strides = tuple(tensor.shape), tensor.stride()
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    raw = flat.contiguous().view(torch.uint8).numpy()
    return pickle.PickleBuffer(raw.data), tensor.dtype, shape, strides


def _tensor(
    data: bytes, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    # In memory that torch allocated: aligned, and writable.
    raw = torch.empty(len(data), dtype=torch.uint8)
    raw.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
    return raw.view(dtype).as_strided(shape, strides)
