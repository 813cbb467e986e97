"""`python -m pytorch_spawner.cli`."""

import sys

from pytorch_spawner.cli import main

sys.exit(main())
