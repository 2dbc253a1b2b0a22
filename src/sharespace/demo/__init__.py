"""``sharespace demo``: the method on real data in under two minutes."""

from sharespace.demo.main import run
from sharespace.demo.result import DemoResult

__all__ = ["DemoResult", "run"]
