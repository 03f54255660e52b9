"""``python -m dreamgym`` is the same as ``dreamgym``."""

import sys

from dreamgym.cli import main

if __name__ == "__main__":
    sys.exit(main())
