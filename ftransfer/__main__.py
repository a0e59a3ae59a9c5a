"""Let `python -m ftransfer` be the command."""

import sys

from ftransfer.cli import main

sys.exit(main())
