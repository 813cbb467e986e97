"""``python -m tests.benchmarks [name ...]``."""

import sys

from tests.benchmarks.run import main

# A module of its own: multiprocessing cannot import a package's __main__ in a new process.
sys.exit(main())
