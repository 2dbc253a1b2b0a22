"""The command line: parse, call, render; no maths."""

from __future__ import annotations

import sys
import warnings

from sharespace.errors import LossWarning, SharespaceError

EXIT_BAD_INPUT = 2


def main() -> None:
    """Entry point of the ``sharespace`` command; bad input is one line and exit code 2."""
    from sharespace.cli.app import app

    # The commands say it themselves, in words for people or in JSON.
    warnings.simplefilter("ignore", LossWarning)
    try:
        app(prog_name="sharespace")
    except SharespaceError as error:
        print(f"sharespace: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)
