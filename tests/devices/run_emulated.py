"""Run the cases on the emulated device and print case -> what went wrong, as JSON.

A process of its own: torch has one such device for all, and finds it wherever it looks for one.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from devices.cases import CASES
from devices.emulated import emulated


def main() -> None:
    torch.set_num_threads(1)
    # Parameters of another class of tensors are put in place of the old ones, not into them.
    torch.__future__.set_swap_module_params_on_conversion(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    found = {}
    for name, case in CASES.items():
        try:
            with emulated() as device:
                case(device)
            found[name] = ""
        except Exception:  # noqa: BLE001 - told to the test, which fails with it
            found[name] = traceback.format_exc()
    print(json.dumps(found), flush=True)
    # The thread of torch's autograd that the device has runs Python; where it is still at it when
    # the interpreter ends, the process aborts ("terminate called without an active exception").
    os._exit(0)


if __name__ == "__main__":
    main()
