"""Which tasks a server takes: those that can be asked for and that its base model can run."""

from __future__ import annotations

import copy
import logging

from sharespace.errors import OptionError, TaskExistsError
from sharespace.share import Share
from sharespace.subspace.base_weights import BaseModules, misfit_tasks, without_misfits

_LOG = logging.getLogger(__name__)

LONGEST_NAME = 512
"""Most characters of a name in a request."""


def check_name(base: str, task: str) -> None:
    """Refuse a task that nobody could ask for.

    Args:
        base: what the base model is called in requests.
        task: a task's name.

    Raises:
        TaskExistsError: it is the base model's.
        OptionError: it cannot be addressed.
    """
    if task == base:
        raise TaskExistsError(
            f"task {task!r}", "is named as the base model", "Give it or the base another name"
        )
    if why := _unaddressable(task):
        raise OptionError(f"task {task!r}", why, "Give it another name")


def _unaddressable(name: str) -> str:
    """Why a name cannot stand in a request or in its path; empty: it can."""
    if len(name) > LONGEST_NAME:
        return f"its name is longer than the {LONGEST_NAME} characters that a request may name"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "its name has a control character"
    if any(0xD800 <= ord(character) < 0xE000 for character in name):
        return "its name has half of a surrogate pair, which UTF-8 cannot hold"
    # Clients and proxies resolve these before the server sees them.
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "a part of its name between slashes is empty, '.' or '..', which no URL can hold"
    return ""


def servable(base: str, modules: BaseModules, stored: Share, *, warn: bool = True) -> Share:
    """A Share model without the tasks that cannot be served; each is named in a warning.

    Args:
        base: what the base model is called in requests.
        modules: the base model's.
        stored: the Share model.
        warn: False: somebody has been told already.

    Raises:
        TaskExistsError: a task is named as the base model.
    """
    if base in stored.model.tasks:
        check_name(base, base)
    reasons = {name: why for name in stored.tasks if (why := _unaddressable(name))}
    unfit = misfit_tasks(stored.model, modules)
    # An error's text names the task already.
    lines = [f"task {name!r}: {why}" for name, why in reasons.items()]
    lines += [str(error) for name, error in unfit.items() if name not in reasons]
    for line in lines if warn else ():
        _LOG.warning("%s. It is not served", line.rstrip("."))
    model = without_misfits(stored.model, modules)
    if unaddressable := [name for name in reasons if name in model.tasks]:
        model = model.without_tasks(*unaddressable)
    if model is stored.model:
        return stored
    # The same version: what is left out changes nothing of the others.
    served = copy.copy(stored)
    served._model = model
    return served
