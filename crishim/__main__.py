"""`python -m crishim`: the command line."""

import sys

from crishim.cli.main import main

sys.exit(main())
