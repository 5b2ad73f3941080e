"""Files and folders that appear under their names only when they are whole, and errors that name them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teramind.errors import InputError


@contextmanager
def appears_whole(path: str | Path) -> Iterator[Path]:
    """Yield a hidden path beside ``path``, to be filled with a file or a folder, and rename it when all went well.

    If the block fails, nothing is left behind. A file replaces an older one; a folder needs a free name.

    Raises:
        OSError: of the block, with ``path`` as its file's name if it had none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as hidden:
        partial = Path(hidden) / path.name
        try:
            yield partial
            if partial.is_file():
                partial.chmod(0o666 & ~_umask())  # some writers make their files private
                fsync(partial)
            partial.replace(path)
        except OSError as error:
            if error.filename is None:
                raise named_error(error, path) from error
            if hidden in str(error.filename):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise  # about another file, one that was read perhaps
    fsync(path.parent)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Refuse, before the work for it, a file that ``appears_whole`` could not make.

    Raises:
        InputError: it is there and may not be replaced, it is a folder, or its own folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; replace it with --overwrite, or choose another name")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {above} is no folder that can be written to")


def remove_leftovers(path: str | Path) -> None:
    """Remove what ``appears_whole`` left beside a path when its process was killed.

    The caller knows, for instance by a lock, that no other process is writing there.
    """
    path = Path(path)
    for hidden in path.parent.glob(f".{path.name}.*"):
        if hidden.is_dir():
            shutil.rmtree(hidden)


def named_error(error: OSError, path: str | Path, needed: int | None = None) -> OSError:
    """Return the error with the file's name, which write() leaves out, and for a full disk with what is free.

    Args:
        error: what the system reported.
        path: of the file that was being written.
        needed: bytes it needs at most.
    """
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
        free = f"{shutil.disk_usage(existing).free:,} free"
        reason += f" ({free})" if needed is None else f" (up to {needed:,} bytes needed, {free})"
    return OSError(error.errno, reason, os.fspath(path))


def fsync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Permissions that new files of this process do not get; the system tells only by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
