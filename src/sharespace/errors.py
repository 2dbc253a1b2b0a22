"""Every error that sharespace raises on purpose.

::

    SharespaceError                       what failed, why, and the remedy, in one message
    |- AdapterError (ValueError)          an adapter cannot be read
    |  |- CorruptAdapterError             its bytes, keys or shapes are broken
    |  `- UnsupportedAdapterError         it holds something that cannot be kept exactly
    |- MismatchError (ValueError)         things of two base models or shapes were put together
    |- OptionError (ValueError)           an argument has no usable value
    |- RecipeError (ValueError)           a recipe cannot be run; it lists all problems
    |- TaskNotFoundError (KeyError)       there is no task of that name
    |- TaskExistsError (ValueError)       there is a task of that name already
    |- ContributionError (ValueError)     a contribution cannot be merged
    |- InboxError (OSError)               contributions cannot be read or handed in there
    |- MissingExtraError (ImportError)    an optional dependency is not installed
    |- ClusterError (RuntimeError)        the processes that compute layers cannot be used
    |- ServeError (RuntimeError)          a server cannot take a request now
    |  |- QueueFullError                  too many requests wait already
    |  |- NoAnswerError                   the model's output for a request is not finite
    |  `- UnavailableError                it is shutting down
    `- StoreError (OSError)               a Share model on disk cannot be read or written
       |- StoreNotFoundError              there is none at that path
       |- StoreExistsError                there is something at that path already
       |- CorruptStoreError               its bytes are not what was committed
       |- SchemaVersionError              its schema version is not one that this release reads
       |- StoreLockedError                another writer is at work
       `- StoreConflictError              another writer committed a version in between

The command line turns each of them into one message and exit code 2. ``LossWarning`` is no error:
a step succeeded, and took much from a task.
"""

from __future__ import annotations


class SharespaceError(Exception):
    """Base of all errors raised on purpose; says what failed, why, and what to do.

    Args:
        what: the thing that failed, by name.
        why: the reason, with the values that were met.
        remedy: what the user can do about it; may be empty when nothing can be done.
    """

    def __init__(self, what: str, why: str, remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{_shortened(self.what)}: {_shortened(self.why)}"
        return f"{text}. {self.remedy}" if self.remedy else text


_LONGEST = 1000
"""Most characters of what failed and why; values out of files of strangers may have any length."""


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 200]} [... {len(text) - _LONGEST:,} characters ...] {text[-200:]}"


class LossWarning(UserWarning):
    """A step took so much from a task that it may not work any more."""


class AdapterError(SharespaceError, ValueError):
    """An adapter cannot be read."""


class CorruptAdapterError(AdapterError):
    """An adapter's bytes, keys or shapes are broken."""


class UnsupportedAdapterError(AdapterError):
    """An adapter holds something that cannot be kept exactly."""


class MismatchError(SharespaceError, ValueError):
    """Things of different base models or shapes were put together."""


class OptionError(SharespaceError, ValueError):
    """An argument has no usable value."""


class RecipeError(SharespaceError, ValueError):
    """A recipe cannot be run.

    Args:
        what: its file.
        problems: all that is wrong with it, one line each.
        remedy: what the user can do about it; may be empty.
    """

    def __init__(self, what: str, problems: tuple[str, ...], remedy: str = "") -> None:
        super().__init__(what, "; ".join(problems), remedy)
        self.args = (what, problems, remedy)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return super().__str__()
        lines = (f"  - {problem}" for problem in self.problems)
        head = f"{self.what}: {len(self.problems)} problems"
        return "\n".join([head, *lines, *([self.remedy] if self.remedy else [])])


class TaskNotFoundError(SharespaceError, KeyError):
    """A task is not in the Share model."""


class TaskExistsError(SharespaceError, ValueError):
    """A task of that name is in the Share model already."""


class ContributionError(SharespaceError, ValueError):
    """A contribution cannot be merged: damaged, or not of this Share model."""


class InboxError(SharespaceError, OSError):
    """A place for contributions cannot be read or written."""


class MissingExtraError(SharespaceError, ImportError):
    """An optional dependency is needed and not installed."""


class ClusterError(SharespaceError, RuntimeError):
    """A cluster cannot be reached, has no worker left, or loses every worker that it has."""


class ServeError(SharespaceError, RuntimeError):
    """A server cannot take a request now."""


class QueueFullError(ServeError):
    """Too many requests wait already."""


class NoAnswerError(ServeError):
    """The model's output for a request is not finite, so that there is no answer."""


class UnavailableError(ServeError):
    """The server is shutting down."""


class StoreError(SharespaceError, OSError):
    """A Share model on disk cannot be read or written."""


class StoreNotFoundError(StoreError):
    """There is no Share model at the path."""


class StoreExistsError(StoreError):
    """There is something at the path already."""


class CorruptStoreError(StoreError):
    """The bytes on disk are not the ones that were committed."""


class SchemaVersionError(StoreError):
    """The store was written in a schema version that this release does not read."""


class StoreLockedError(StoreError):
    """Another writer holds the lock."""


class StoreConflictError(StoreError):
    """Another writer committed a version since this one was loaded."""
