"""`python -m distillery`, installed or from lib/."""

import sys

from distillery.cli import main

sys.exit(main())
