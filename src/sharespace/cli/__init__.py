"""The command line: parse, call, render; no maths."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from sharespace.errors import LossWarning, SharespaceError
from sharespace.words import error_text, visible

EXIT_BAD_INPUT = 2


def main() -> None:
    """Entry point of the ``sharespace`` command; bad input is one line and exit code 2."""
    from sharespace.cli.app import app

    # The commands say it themselves, in words for people or in JSON.
    warnings.simplefilter("ignore", LossWarning)
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding than UTF-8 shows what it lacks as escapes.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="sharespace")
        finally:
            # Here, where a full disk is still an error with a message, and not when Python ends.
            if sys.stdout is not None:  # It was closed by whoever started the command.
                sys.stdout.flush()
    except SharespaceError as error:
        _end(error_text(error))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        if error.filename is None:
            _drop_output()
            _end(f"standard output: it cannot be written ({reason})")
        _end(visible(f"{error.filename}: {reason}. Check the path, its disk and its permissions"))
    except KeyboardInterrupt:
        sys.exit(130)


def _drop_output() -> None:
    """Send what is still in the buffer nowhere: Python would fail on it again at its end."""
    with suppress(OSError, ValueError):  # a stream without a file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(text: str) -> NoReturn:
    print(f"sharespace: {text}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
