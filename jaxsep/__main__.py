"""The command line: `jaxsep`, and `python -m jaxsep`."""

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line of this process; until it is imported, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jaxsep.cli import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())
