"""sharespace: one low-rank subspace per layer instead of hundreds of LoRA adapters."""
