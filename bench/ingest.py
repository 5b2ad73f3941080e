"""Speed and memory of the transcripts' way into an atlas, beside pyarrow's streaming read alone.

    python bench/ingest.py [--rows 10000000] [--repeats 3] [--folder FOLDER]

Writes a MERSCOPE-like detected_transcripts.csv (10 columns and an index, 550 names, 50 of them controls; clustered as
cells are) and times, in turn, (a) pyarrow's streaming CSV reader on the columns that the ingest needs, and (b)
read_merscope, from the folder to the finished store, without images. Each is a process of its own, so that its peak
memory is its own; start-up and imports are not timed. The file is read once before, so that both find it cached.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

HEIGHT_UM, WIDTH_UM = 11_500.0, 7_960.0  # one published section, 106,496 x 73,728 px
CELLS = 100_000
BLOCK = 500_000


def write_folder(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    names = pa.array([f"Gene{index}" for index in range(500)] + [f"Blank-{index}" for index in range(50)])
    transcripts = pa.array([f"ENSMUST{index:011d}" for index in range(len(names))])
    cell_y, cell_x = rng.uniform(0, HEIGHT_UM, CELLS), rng.uniform(0, WIDTH_UM, CELLS)
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("9.2596 0 0\n0 9.2595 0\n0 0 1\n")
    writer = None
    for first in range(0, rows, BLOCK):
        size = min(BLOCK, rows - first)
        cell = rng.integers(0, CELLS, size)
        x, y = cell_x[cell] + rng.normal(0, 4, size), cell_y[cell] + rng.normal(0, 4, size)
        # a cell expresses some genes much more than others
        gene = (cell * 37 + np.minimum(rng.geometric(0.05, size), 550)) % 550
        table = pa.table(
            {
                "": np.arange(first, first + size),
                "barcode_id": gene,
                "global_x": x,
                "global_y": y,
                "global_z": rng.integers(0, 7, size).astype(np.float64),
                "x": x % 220,
                "y": y % 220,
                "fov": rng.integers(0, 2000, size),
                "gene": names.take(pa.array(gene)),
                "transcript_id": transcripts.take(pa.array(gene)),
                "cell_id": cell,
            }
        )
        if writer is None:
            writer = pa_csv.CSVWriter(folder / "detected_transcripts.csv", table.schema)
        writer.write(table)
    if writer is not None:
        writer.close()


def read_alone(folder: Path) -> None:
    types = {"global_x": pa.float64(), "global_y": pa.float64(), "gene": pa.dictionary(pa.int32(), pa.string())}
    reader = pa_csv.open_csv(
        folder / "detected_transcripts.csv",
        read_options=pa_csv.ReadOptions(block_size=4 << 20),
        convert_options=pa_csv.ConvertOptions(include_columns=list(types), column_types=types),
    )
    for _ in reader:
        pass


def ingest(folder: Path) -> None:
    from teramind.atlas.frame import Extent
    from teramind.atlas.merscope import read_merscope

    output = folder.parent / "atlas.zarr"
    read_merscope([folder], output, stains=(), extent=Extent(0, HEIGHT_UM, 0, WIDTH_UM), overwrite=True)


def timed(kind: str, folder: Path) -> dict[str, float]:
    """Run one of the two in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--one", kind, "--folder", str(folder)], check=True, capture_output=True, text=True
    )
    return json.loads(result.stdout)


def run_one(kind: str, folder: Path) -> None:
    import teramind.atlas.merscope  # noqa: F401 - what is imported is not timed

    started, cpu = time.perf_counter(), time.process_time()
    {"read": read_alone, "ingest": ingest}[kind](folder)
    result = {"s": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    result["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the CSV here and use it again")
    parser.add_argument("--one", choices=["read", "ingest"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.folder)
        return
    place = arguments.folder or Path(tempfile.mkdtemp(prefix="bench-ingest-"))
    try:
        folder = place / f"region_{arguments.rows}"
        if not folder.exists():
            write_folder(folder, arguments.rows)
        read_alone(folder)
        runs = {"read": [], "ingest": []}
        for _ in range(arguments.repeats):
            for kind, results in runs.items():
                results.append(timed(kind, folder))
        size = (folder / "detected_transcripts.csv").stat().st_size
        print(f"{arguments.rows:,} rows, {size / 1e6:,.0f} MB, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        print(f"{'':24}{'best s':>9}{'median s':>10}{'CPU s':>8}{'Mrows/s':>9}{'peak RSS MB':>13}")
        for kind, label in (("read", "pyarrow's read alone"), ("ingest", "folder to atlas")):
            seconds = [result["s"] for result in runs[kind]]
            rss = max(result["rss"] for result in runs[kind]) / 1e6
            cpu = min(result["cpu"] for result in runs[kind])
            rate = arguments.rows / min(seconds) / 1e6
            print(f"{label:24}{min(seconds):9.2f}{statistics.median(seconds):10.2f}{cpu:8.2f}{rate:9.2f}{rss:13.0f}")
        best = {kind: min(result["s"] for result in results) for kind, results in runs.items()}
        print(f"speed of the ingest over that of the read: {best['read'] / best['ingest']:.2f}")
    finally:
        if arguments.folder is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
