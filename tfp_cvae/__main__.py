"""`python -m tfp_cvae` is the command `tfp-cvae`."""

import sys

from tfp_cvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
