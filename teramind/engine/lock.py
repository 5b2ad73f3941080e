"""One process an output: an advisory lock that says who holds it and that a killed process leaves open."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from teramind.errors import InputError


class OutputLock:
    """A lock on an output's name, in a hidden file beside it, so that it also holds while the output is replaced.

    Raises:
        InputError: on entering, where another process holds it; its host and process number are named.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f".{output.name}.lock")

    def __enter__(self) -> Self:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = self.path.open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise InputError(
                    f"{self.output} is being written by {holder}; wait for it or choose another name"
                ) from None
            if self._is_current():
                break
            self._file.close()  # its last holder removed it between our opening and locking
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False
