"""``--workers``: where layers are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharespace.errors import OptionError

if TYPE_CHECKING:
    from sharespace.executor import Executor


@contextmanager
def executor(workers: str | None) -> Iterator[Executor]:
    """Here where nothing is said; else so many processes, or the cluster at an address.

    Raises:
        OptionError: neither a number nor an address.
        ClusterError: there is no cluster at the address.
        MissingExtraError: Dask is not installed.
    """
    from sharespace.executor import LOCAL, Dask

    if workers is None:
        yield LOCAL
        return
    with Dask(_parsed(workers)) as found:
        yield found


def _parsed(workers: str) -> int | str:
    if workers.lstrip("-").isdecimal():
        return int(workers)
    if ":" not in workers:
        raise OptionError(
            f"--workers {workers!r}",
            "neither a number nor the address of a Dask scheduler",
            "For example --workers 4, or --workers tcp://10.0.0.1:8786",
        )
    return workers
