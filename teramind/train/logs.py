"""The log of a training: JSON lines always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teramind.files import appears_whole, named_error

logger = logging.getLogger(__name__)
NAME = "log.jsonl"
TENSORBOARD = "tensorboard"


class Log:
    """Writes what was measured at a step, and a line of it for a person.

    Args:
        run: the run's folder.
        step: the step it begins at; what was logged after it, by a session whose state was lost, is dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._path = run / NAME
        kept = [line for line in self._lines() if _step_of(line) <= step]
        with appears_whole(self._path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._board = None
        if importlib.util.find_spec(TENSORBOARD):
            board = importlib.import_module("torch.utils.tensorboard")
            self._board = board.SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log values of one kind: "train", "held_out", "sample"."""
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise named_error(error, self._path) from error
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        logger.info("step %d  %s  %s", step, kind, "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()

    def close(self) -> None:
        """End the log."""
        if self._board:
            self._board.close()

    def _lines(self) -> list[str]:
        """The whole lines that are there; a killed process may have left a part of one."""
        if not self._path.exists():
            return []
        return self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _step_of(line: str) -> float:
    """The step of a line, none if it is damaged: blocks that never reached the disk read as zeros."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
