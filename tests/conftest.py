"""One thread, here and in every process that a test starts, and no width of a terminal.

Matrices this small gain nothing from a second one, and on a busy machine threads that wait for each
other lose minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The processes of pytest-xdist have COLUMNS=80, which rich reads once, where a console is made: the
# width that a test asks for later would not count.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

import torch

torch.set_num_threads(1)
