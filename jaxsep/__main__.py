"""The command line: `jaxsep`, and `python -m jaxsep`."""

import os
import signal
import sys
import warnings

__all__ = ["main"]


def main() -> int:
    """Runs the command line of this process; until it is imported, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of other libraries; what is odd about a recording is said
    from jaxsep.cli import app

    status = app.main()
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads it any more, and Python would complain at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
