"""`python benchmarks/evidence COMMAND`, from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from evidence.commands import main

    sys.exit(main(sys.argv[1:]))
