"""Tasks of a Share model in other servers; needs nothing of transformers or PEFT."""
