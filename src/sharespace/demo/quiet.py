"""A block that prints nothing of other libraries and leaves no trace in the process."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sharespace.extras import require


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seeded, silent, on one thread; everything as it was afterwards.

    One thread, because matrices this small gain nothing from a second one, the figures do not
    depend on the number of cores then, and a busy machine does not slow it down tenfold.
    """
    before, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), _silent():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def _silent() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars = require("transformers.utils.logging", "train")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if shown:
            bars.enable_progress_bar()
