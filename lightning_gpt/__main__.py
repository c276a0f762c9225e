"""``python -m lightning_gpt``: the console script by another name."""

import sys

from lightning_gpt.cli import main

sys.exit(main())
