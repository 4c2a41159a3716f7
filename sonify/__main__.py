"""`python -m sonify`."""

import sys

from sonify.cli import main

if __name__ == "__main__":
    sys.exit(main())
