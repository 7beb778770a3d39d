"""Lets ``python -m gpublocks`` do what the command ``gpublocks`` does. Touches what it touches."""

import sys

from gpublocks.cli import main

if __name__ == "__main__":
    sys.exit(main())
