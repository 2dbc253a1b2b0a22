"""Gather again and again."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from sharespace.errors import InboxError, OptionError, StoreError, StoreNotFoundError
from sharespace.gather.gatherer import Gathered, Gatherer
from sharespace.store import checkout


def watch(
    gatherer: Gatherer,
    stop: Event,
    *,
    interval: float = 10.0,
    observe: Callable[[Gathered], None] | None = None,
    failed: Callable[[StoreError | InboxError], None] | None = None,
) -> Gathered:
    """Gather whatever arrives, until told to stop.

    A batch that was begun is brought to its end: merged, committed and tidied away.

    Args:
        stop: set by whoever wants it to end, such as a signal handler.
        interval: seconds between two looks at the inbox.
        observe: called after each batch.
        failed: called where the store or the inbox did not answer (locked, no connection, disk
            full); it is tried again after the interval.

    Raises:
        OptionError: the interval is not positive.
        StoreNotFoundError: there is no Share model.
        InboxError: the inbox cannot be listed at the start.
    """
    if not interval > 0:
        raise OptionError(f"interval {interval}", "it must be positive", "Change it")
    total = Gathered(checkout(gatherer.store).version.number)
    gatherer.inbox.entries()

    def seen(found: Gathered) -> None:
        nonlocal total
        total += found
        if observe:
            observe(found)

    while not stop.is_set():
        try:
            gatherer.run(seen, stop.is_set)
        except StoreNotFoundError:
            raise
        except (StoreError, InboxError) as error:
            if failed:
                failed(error)
        stop.wait(interval)
    return total
