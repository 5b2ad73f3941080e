"""The folder of a report, which appears whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from teramind.atlas.staging import StagedFolder
from teramind.errors import InputError
from teramind.evaluate.evaluation import Evaluation
from teramind.evaluate.extras import required
from teramind.evaluate.measure import Plan, Result
from teramind.files import named_error

HTML_NAME, JSON_NAME = "report.html", "report.json"
KIND = "teramind evaluation"


class ReportFolder:
    """A report about to be written; opening it finds out whether it can be, before hours of work.

    Args:
        path: the folder. A report that is there is replaced, as is an empty folder.

    Raises:
        InputError: there is something else of that name, or a library is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        required("matplotlib")
        required("jinja2")
        path = Path(path)
        if path.exists() and not is_report(path):
            raise InputError(f"{path} is there already and is no report of teramind's: name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = StagedFolder(path, overwrite=True, is_ours=is_report)

    def write(self, evaluation: Evaluation, plan: Plan, result: Result) -> None:
        """Fill the folder and give it its name.

        Raises:
            OSError: it cannot be written, for instance because the disk is full.
        """
        from teramind.evaluate.report.page import render_page

        figures = {"kind": KIND, **evaluation.to_json()}
        self._write(JSON_NAME, json.dumps(figures, indent=1, allow_nan=False, default=str) + "\n")
        self._write(HTML_NAME, render_page(evaluation, plan, result))
        self._folder.publish()

    def _write(self, name: str, text: str) -> None:
        try:
            (self._folder.partial / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise named_error(error, self._folder.path / name) from error

    def close(self) -> None:
        """Remove what was not finished."""
        self._folder.discard()


def is_report(path: Path) -> bool:
    """Whether a folder is a report of ours, or empty."""
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    try:
        return bool(json.loads((path / JSON_NAME).read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False
