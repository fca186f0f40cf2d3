"""`python -m sparsity_core`: the command line, for a clone or an environment without the command `sparselens`."""

import sys

from sparsity_core.cli import start

if __name__ == "__main__":
    sys.exit(start())
