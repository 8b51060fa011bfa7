"""The command line: a thin layer over the library, with exit code 2 and one clear message for a user's mistake."""

from zippkit.cli.entry import app as app
from zippkit.cli.entry import main as main
