"""A folder that appears under its name only when it is whole."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from teramind.errors import InputError

IsOurs = Callable[[Path], bool]


class StagedFolder:
    """Builds a folder in a hidden sibling and renames it into place.

    The sibling is called ``.NAME.partial-HOST-PID``. One that a killed process of this host left behind is removed when
    the next writer to the same name starts; one of a living process or of another host is left alone.

    Args:
        path: The name under which the folder appears.
        overwrite: Replace a folder of that name; it stays in place until the new one is whole.
        is_ours: Tells whether a folder may be replaced; nothing that is not ours is ever removed.

    Raises:
        InputError: The name is taken and may not be overwritten, its parent is missing, or this very process is
            already writing to it.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, is_ours: IsOurs) -> None:
        self.path = Path(path).absolute()
        self._overwrite = overwrite
        self._is_ours = is_ours
        if not self.path.name:
            raise InputError(f"{path} cannot be written: name a new folder")
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path} cannot be written: there is no folder {self.path.parent}; make it first")
        self._check_free()
        self._remove_leftovers()
        self.partial = self.path.with_name(f"{self._prefix}{os.getpid()}")
        try:
            self.partial.mkdir()
        except FileExistsError:
            raise InputError(f"{self.path} is already being written by this process: finish that first") from None

    @property
    def _prefix(self) -> str:
        return f".{self.path.name}.partial-{socket.gethostname()}-"

    def _check_free(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise InputError(f"{self.path} is there already: name another output, or pass overwrite to replace it")
        if not self._is_ours(self.path):
            raise InputError(f"{self.path} is no output of teramind's and is not overwritten: name another output")

    def _remove_leftovers(self) -> None:
        for entry in self.path.parent.iterdir():
            process = entry.name.removeprefix(self._prefix)
            if process != entry.name and process.isdecimal() and not _is_alive(int(process)):
                shutil.rmtree(entry, ignore_errors=True)

    def publish(self) -> None:
        """Give the folder its name, replacing the old one if that was asked for."""
        self._check_free()
        if not self.path.exists():
            self.partial.rename(self.path)
            return
        # Two renames, not a removal first: the old folder stays whole until the new one can take its place.
        aside = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.replaced-", dir=self.path.parent))
        old = self.path.rename(aside / self.path.name)
        try:
            self.partial.rename(self.path)
        except OSError:
            old.rename(self.path)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written so far; nothing appears under the name. Does nothing once that is published."""
        shutil.rmtree(self.partial, ignore_errors=True)  # an error here would hide the one that led here


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is someone else's
        return True
    return True
