"""`python -m jaxsep`: the command line."""

import sys

from jaxsep.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
