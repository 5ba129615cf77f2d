"""`python -m mgdet` is `mgdet`."""

import sys

from mgdet.cli import main

if __name__ == "__main__":
    sys.exit(main())
