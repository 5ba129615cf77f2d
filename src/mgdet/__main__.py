"""`python -m mgdet` is `mgdet`; torchrun starts it so."""

import sys

from mgdet.cli import main

if __name__ == "__main__":
    code = main()
    if code and "torch" in sys.modules:  # without it there are no other processes, and it takes a second to import
        from mgdet.distributed import leave

        leave(code)
    sys.exit(code)
