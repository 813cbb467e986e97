"""Start of the zipapp and of ``python -m pytorch_spawner.agent``; see ``launch``."""

import sys

from pytorch_spawner.agent.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
