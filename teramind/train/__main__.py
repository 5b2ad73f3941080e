"""``python -m teramind.train ...``, also under torchrun."""

from teramind.cli import run_command

raise SystemExit(run_command("train"))
