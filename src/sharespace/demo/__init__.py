"""``sharespace demo``: the method on real data in under two minutes."""

from sharespace.demo.main import DemoResult, run

__all__ = ["DemoResult", "run"]
