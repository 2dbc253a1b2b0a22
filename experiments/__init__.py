"""What was measured of the paper's claims: an experiment a folder, their stages in ``harness``.

An experiment's package says in ``STAGES`` which stages it has beside the harness's, and in ``HUB``
which of all load from the Hugging Face Hub; the others run offline.
"""

EXPERIMENTS = (
    "language_model",
    "text_stream",
    "images",
    "pose",
    "text_to_image",
    "generation",
    "glue",
    "transfer",
)
"""In the order of the page of all results."""
