"""`python benchmarks/evidence COMMAND`, from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the package itself, not its files as modules
    from evidence.commands import main

    sys.exit(main(sys.argv[1:]))
