"""The three networks of a tissue, as a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from teramind.errors import InputError, TeramindError
from teramind.impute.celltype import TypeModel
from teramind.impute.expression import ExpressionModel
from teramind.impute.location import LocationModel

STAGES = ("locations", "types", "expression")

Model = TypeVar("Model", LocationModel, TypeModel, ExpressionModel)


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
            _loaded(LocationModel.load, model_path(folder, "locations")),
            _loaded(TypeModel.load, model_path(folder, "types")),
            _loaded(ExpressionModel.load, model_path(folder, "expression")),
        )


def _loaded(load: Callable[[Path], Model], path: Path) -> Model:
    """A model; an ``InputError`` where what its header says lacks something or does not fit its tensors."""
    try:
        return load(path)
    except TeramindError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} was changed: its header does not fit its tensors ({reason}); copy or train it again"
        ) from None


def model_path(folder: Path, stage: str) -> Path:
    """The file of one network."""
    return folder / f"{stage}.safetensors"


def state_path(folder: Path, stage: str) -> Path:
    """The file of one network's training state."""
    return folder / "training" / f"{stage}.safetensors"


def given_path(folder: Path) -> Path:
    """The file that says what the training was given."""
    return folder / "training" / "given.json"
