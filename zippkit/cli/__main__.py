"""``python -m zippkit.cli``: the same as ``python -m zippkit``."""

from zippkit.cli import main

main()
