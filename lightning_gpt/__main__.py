"""``python -m lightning_gpt``: the console script by another name."""

import sys

# python -m puts the working folder first on the path, where any file of it could replace a package. It must go before
# the other imports. An uninstalled clone that is run from its own folder needs it.
if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/lightning_gpt/"):
    del sys.path[0]

from lightning_gpt.cli import main

sys.exit(main())
