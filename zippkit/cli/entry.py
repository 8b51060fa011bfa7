"""The entry point of the command line: every command in its order, and one clear message for a user's mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from zippkit.cli import compositions, datasets, hub, kinds, runs, shipped
from zippkit.errors import ZippkitError
from zippkit.system.files import FULL

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    shipped.demo,
    shipped.recipes,
    compositions.init,
    compositions.check,
    compositions.plan,
    compositions.diagram,
    compositions.sizes,
    compositions.diff,
    compositions.verify,
    compositions.recipe,
    runs.train,
    runs.experiment,
    runs.evaluate,
    runs.report,
    runs.generate,
    runs.export,
    hub.push,
    hub.pull,
    datasets.prepare,
    kinds.towers,
    kinds.links,
    kinds.scorers,
    kinds.readers,
    kinds.trackers,
    kinds.schema,
)
"""In the order in which ``zippkit --help`` lists them."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"zippkit {version('zippkit')} (torch {version('torch')}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compose independently pre-trained towers into one multimodal model."""


for command in COMMANDS:
    app.command(name="eval" if command is runs.evaluate else None)(command)


def main() -> None:
    """Entry point of the ``zippkit`` command."""
    # Threads that wait spinning slow a shared machine five times; sleeping ones cost a tenth on an idle one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        try:
            app()
        finally:
            # Here, where a full disk can still be told.
            sys.stdout.flush()
    except ZippkitError as error:
        print(error, file=sys.stderr)
        interrupted = type(error).__name__ == "InterruptedRunError"
        raise SystemExit(130 if interrupted else 2) from None
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `zippkit plan spec.yaml | head`.
        _drop_output()
        raise SystemExit(0) from None
    except OSError as error:
        # A path that cannot be read or written is the user's to mend; anything else is a bug and keeps its traceback.
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        _drop_output()
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        told = _about_memory(error)
        if not told:
            raise
        print(f"too little memory: {told}; fewer or shorter rows, or a smaller model, need less", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _drop_output() -> None:
    """Send what is still to be printed to nowhere, so that it cannot fail when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about_memory(error: MemoryError | RuntimeError) -> str:
    """The message of a failed allocation; empty for any other error. torch has no class for it on a CPU."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return said or "an allocation failed"
    _, found, rest = said.partition("DefaultCPUAllocator: ")
    return rest if found else ""
