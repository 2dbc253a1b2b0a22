"""``sharespace demo``: the method on real data in under two minutes."""

from sharespace.demo.result import DemoResult
from sharespace.demo.run import run

__all__ = ["DemoResult", "run"]
