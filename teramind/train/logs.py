"""The log of a training: JSON lines always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teramind.files import appears_whole

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
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        with appears_whole(self._path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._board = None
        if importlib.util.find_spec(TENSORBOARD):
            board = importlib.import_module("torch.utils.tensorboard")
            self._board = board.SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log values of one kind: "train", "held_out", "sample"."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
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
        return self._path.read_text(encoding="utf-8").split("\n")[:-1]
