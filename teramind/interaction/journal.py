"""What is done, line by line: a line is there whole or not at all, and outlives the process."""

from __future__ import annotations

from pathlib import Path

from teramind.files import appears_whole, fsync


def read_journal(path: Path) -> list[str]:
    """The lines of a journal; it is left without the one that a crash may have torn. Empty if there is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    with appears_whole(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lines


def append_line(path: Path, line: str) -> None:
    """Add a line, and wait until it is on the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    fsync(path)
