"""The three networks of a tissue, as a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from teramind.errors import InputError
from teramind.impute.celltype import TypeModel
from teramind.impute.expression import ExpressionModel
from teramind.impute.location import LocationModel

STAGES = ("locations", "types", "expression")


@dataclass(frozen=True)
class Models:
    """Where cells lie, what they are, what they express."""

    locations: LocationModel
    types: TypeModel
    expression: ExpressionModel

    def __post_init__(self) -> None:
        known = set(self.expression.vocabulary.labels.get("type", ()))
        if unknown := sorted(set(self.types.names) - known):
            raise InputError(
                f"type {unknown[0]!r} can be drawn but not expressed; train both networks on the same cells"
            )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Models:
        """Read the folder that ``teramind impute train`` writes.

        Raises:
            InputError: a file is absent, damaged or of another kind.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; teramind impute train writes one")
        if absent := [name for name in STAGES if not model_path(folder, name).is_file()]:
            raise InputError(f"{folder} lacks {absent[0]}.safetensors: finish the training with --resume")
        return cls(
            LocationModel.load(model_path(folder, "locations")),
            TypeModel.load(model_path(folder, "types")),
            ExpressionModel.load(model_path(folder, "expression")),
        )


def model_path(folder: Path, stage: str) -> Path:
    """The file of one network."""
    return folder / f"{stage}.safetensors"


def state_path(folder: Path, stage: str) -> Path:
    """The file of one network's training state."""
    return folder / "training" / f"{stage}.safetensors"


def given_path(folder: Path) -> Path:
    """The file that says what the training was given."""
    return folder / "training" / "given.json"
