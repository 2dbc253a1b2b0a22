"""The one interface, and the executor that every build and merge uses unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Local:
    """One item after the other in this process: nothing is copied, one item in memory."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """See ``Executor.map``."""
        return map(function, items)


LOCAL = Local()
"""What runs where no executor is given."""
