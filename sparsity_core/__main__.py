"""`python -m sparsity_core`: the command line."""

import sys

from sparsity_core.cli import main

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a console without Σ gets the rest
    sys.exit(main())
