"""``python -m zippkit``: the command line, where the ``zippkit`` command is not on the path."""

from zippkit.cli import main

main()
