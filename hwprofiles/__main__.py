"""`python -m hwprofiles` is the command `hwprofile`."""

import sys

from hwprofiles.cli import main

sys.exit(main())
