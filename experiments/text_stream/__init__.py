"""Seven real text tasks, learned one after the other on a real pretrained encoder."""

STAGES = ("sweep", "sizes", "router")
