"""Requirements of the wheel in a folder, without torch: ``python requirements_of.py FOLDER``.

vLLM's wheel for the CPU pins a build of torch that not every index has; the environment has one
already.
"""

from __future__ import annotations

import sys
import zipfile
from email.parser import Parser
from pathlib import Path


def main() -> None:
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(opened.read(name).decode())
    for line in metadata.get_all("Requires-Dist") or []:
        if "extra ==" not in line and not line.lower().startswith("torch"):
            print(line)


if __name__ == "__main__":
    main()
