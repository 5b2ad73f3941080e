"""The ``teramind`` command: one verb a task, each a thin cover of a library function."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from teramind.errors import Interrupted, TeramindError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT


@dataclass(frozen=True)
class Command:
    """A verb: its module offers ``add_arguments(parser)`` and ``run(arguments)``, imported only when it is used."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "ingest": Command("teramind.atlas.ingest", "read a MERSCOPE, Xenium or tile folder into an atlas store"),
    "phantom": Command("teramind.atlas.phantom.command", "make a phantom brain: an atlas whose truth is known"),
    "info": Command("teramind.atlas.info", "say what is in an atlas or a checkpoint"),
    "generate": Command("teramind.generate", "generate the tissue image of an atlas with a checkpoint"),
    "train": Command("teramind.train.command", "train a network on atlases"),
    "estimate": Command("teramind.engine.estimate", "say what generating would take: time, memory, disk"),
    "evaluate": Command("teramind.evaluate.command", "compare generated images with the true ones: figures, report"),
    "interact": Command("teramind.interaction.interact", "map which genes attend to each other, and where"),
    "perturb": Command("teramind.interaction.perturb", "change genes and see what changes in the tissue"),
    "impute": Command("teramind.impute.command", "impute cells, types and expression for tissue never measured"),
    "export": Command("teramind.output.export", "write an image, or a part of it, as OME-Zarr 0.4 or OME-TIFF"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``teramind VERB ...`` and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="teramind",
        description="Spatial transcriptomics in, tera-voxel tissue images out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(f"  {verb:<10} {command.summary}" for verb, command in COMMANDS.items()),
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("verb", nargs="?", choices=[*COMMANDS], metavar="VERB", help="what to do; see below")
    parsed = parser.parse_args(words[:1])
    if parsed.version:
        from teramind import __version__

        sys.stdout.write(f"teramind {__version__}\n")
        return 0
    if parsed.verb is None:
        parser.print_help()
        return EXIT_BAD_INPUT
    return run_command(parsed.verb, words[1:])


def run_command(verb: str, argv: Sequence[str] | None = None) -> int:
    """Run one verb with its own arguments (``sys.argv[1:]`` if None) and return the exit code."""
    command = COMMANDS[verb]
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(prog=f"teramind {verb}", description=module.__doc__)
    module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return guarded(module.run, arguments)


def guarded(run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace) -> int:
    """Call ``run`` and turn what the user can mend into one sentence and exit code 2."""
    try:
        return run(arguments) or 0
    except Interrupted as error:
        sys.stderr.write(f"teramind: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:  # Ctrl-C where nothing had to be saved
        sys.stderr.write("teramind: interrupted\n")
        return EXIT_INTERRUPTED
    except (TeramindError, OSError) as error:  # an OSError (disk full, no permission) names its file itself
        sys.stderr.write(f"teramind: error: {error}\n")
    return EXIT_BAD_INPUT
