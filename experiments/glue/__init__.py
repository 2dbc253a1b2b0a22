"""The paper's table on GLUE with roberta-base: its recipes, and tiny stand-ins for them."""

STAGES = ("run", "table", "standins")
HUB = ("run",)
