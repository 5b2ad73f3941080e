"""Everything that is measured on a GPU, in under 8 minutes: ``python bench/gpu.py``. Prints one table last.

1. The folded convolutions of a 1024-px tile, as cuDNN runs them: what is reachable.
2. Parity. The network in float32 against arrays computed with the authors' code, then every kernel against its
   reference in float64 on fresh random inputs, with poisoned outputs. A speed-up over something whose parity is red, or
   not known, is refused, and the exit code is 1.
3. The network's step at the published size against the plain baseline under float16 autocast.
4. Every kernel against its reference, eager and under torch.compile, over the card's measured copy bandwidth and matrix
   rates; where the step's time goes; and torch.compile of the whole network.

A section is a process of its own with a limit of time: one that fails or hangs says so, and the others go on.
``python bench/gpu.py SECTION ...`` runs only those; ``--dry`` first goes through them on a CPU, at sizes that show no
more than that they run. Where the environment variable OUT names a folder, ``table.txt`` and ``rows.jsonl`` are
written there after each section; GIT_COMMIT names the commit of a copy without its history. Works from a checkout,
installed or not; torch and Triton are all it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
import teramind  # noqa: E402

if str(ROOT) not in teramind.__path__:
    teramind.__path__.append(str(ROOT))  # in a checkout that is not installed, the kernels stand beside the package

from gpu_sections import SECTIONS, Ceiling, Found, Parity, Row  # noqa: E402
from gpu_setting import DRY_RUN, prepare_process  # noqa: E402

SECONDS = 465
# Seconds that a section may take; what the ones before it leave over goes to the last ones.
LIMITS = {"ceilings": 40, "convolutions": 60, "parity": 150, "step": 150, "kernels": 80, "profile": 40}
UNITS_A_BRAIN = 118_404 * 25 * 15  # 256-px tiles x windows x steps
# The targets: of copy bandwidth, of torch's speed, of the plain baseline's, of the measured matrix rate.
COPY_SHARE, ATTENTION_RATIO, STEP_RATIO, PEAK_SHARE = 0.8, 2.0, 6, 0.45
REACHABLE_MS = 4.5  # of convolutions a 256-px unit, for the target of the step to hold on an H200
H200_OVER_A100 = 989 / 312  # bfloat16 rates in the vendor's data sheets; of bandwidth (A100 40 GB) it is 4.8 / 1.56


class Results(NamedTuple):
    """What has been found so far."""

    ceilings: dict[str, float]
    parity: dict[str, str]  # operation -> what is wrong with it
    rows: dict[str, list[Row]]  # by section


# ---- run -------------------------------------------------------------------------------------------------------------


def run_section(name: str, file: Path) -> None:
    """In a process of its own: write what a section finds, a line each, as soon as it is found."""
    prepare_process()
    with file.open("a", encoding="utf-8") as lines:
        for found in SECTIONS[name]():
            lines.write(json.dumps([name, type(found).__name__, *found]) + "\n")
            lines.flush()


def start_section(name: str, file: Path, seconds: float) -> bool:
    """Run a section for a time, whatever comes of it; whether it came to its end or to that of its time."""
    begin = time.perf_counter()
    # A session of its own: what is cut off takes the processes with it that it started.
    process = subprocess.Popen([sys.executable, __file__, "--write", str(file), name], start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
        end = f" FAILED with {code}" if code else ""
    except subprocess.TimeoutExpired:
        code, end = 0, f" CUT OFF after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(f"[{name}: {time.perf_counter() - begin:.0f} s{end}]", flush=True)
    return code == 0


def read_found(file: Path) -> Results:
    """What all sections have found so far."""
    results = Results({}, {}, {})
    kinds = {kind.__name__: kind for kind in (Ceiling, Parity, Row)}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        section, kind, *values = json.loads(line)
        collect(results, section, kinds[kind](*values))
    return results


def collect(results: Results, section: str, found: Found) -> None:
    if isinstance(found, Ceiling):
        results.ceilings[found.name] = found.rate
    elif isinstance(found, Parity):
        results.parity[found.operation] = found.wrong
    else:
        results.rows.setdefault(section, []).append(found)


# ---- report ----------------------------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """All rows, and what they come to."""
    compiled = {
        row.name.removesuffix(", compiled"): row.milliseconds for row in results.rows.get("compiled_kernels", ())
    }
    ratios = ("eager", "compiled", "baseline")
    lines = [f"{'':<72} {'ms':>8} {'TFLOP/s':>8} {'of peak':>7} {'TB/s':>6} {'of copy':>7}"]
    lines[0] += "".join(f" {'x ' + name[:5]:>7}" for name in ratios)
    for section, rows in results.rows.items():
        if section == "compiled_kernels":
            continue
        lines.append(section)
        for row in rows:
            if row.name in compiled:
                row = row._replace(ratios=row.ratios | {"compiled": compiled[row.name] / row.milliseconds})
            lines.append(_line(row, results, ratios))
    for operation, wrong in results.parity.items():
        if wrong:
            lines.append(f"PARITY IS RED: {operation}: {wrong}")
    return "\n".join([*lines, *_conclusions(results)])


def _line(row: Row, results: Results, ratios: Sequence[str]) -> str:
    peak, copy = results.ceilings.get(row.dtype), results.ceilings.get("copy")
    flops, moved = (work / row.milliseconds * 1e3 for work in (row.flops, row.bytes))
    cells = [
        f"{flops / 1e12:8.1f}" if flops else f"{'':8}",
        f"{flops / peak:7.0%}" if flops and peak else f"{'':7}",
        f"{moved / 1e12:6.2f}" if moved else f"{'':6}",
        f"{moved / copy:7.0%}" if moved and copy else f"{'':7}",
    ]
    trusted = not row.operation or results.parity.get(row.operation) == ""
    for name in ratios:
        shown = "" if name not in row.ratios else f"{row.ratios[name]:.2f}" if trusted else "refused"
        cells.append(f"{shown:>7}")
    note = row.note if trusted else f"{row.note} PARITY {'RED' if results.parity.get(row.operation) else 'NOT KNOWN'}"
    return f"  {row.name:<70} {row.milliseconds:8.3f} {' '.join(cells)}  {note}".rstrip()


def _conclusions(results: Results) -> list[str]:
    """The targets, and what a brain would take."""
    lines = []
    if (rows := results.rows.get("convolutions", [])) and rows[-1].name.startswith("all "):
        verdict = "reachable" if rows[-1].milliseconds <= REACHABLE_MS else "out of reach with these convolutions"
        lines.append(f"convolutions of a unit: {rows[-1].milliseconds:.2f} ms, at most {REACHABLE_MS}: {verdict}")
    trusted = [row for row in results.rows.get("kernels", []) if results.parity.get(row.operation) == ""]
    if trusted and (copy := results.ceilings.get("copy")):
        shares = [row.bytes / row.milliseconds * 1e3 / copy for row in trusted if not row.flops]
        lines.append(_share_that_reaches("fused element-wise kernels", "of copy", shares, COPY_SHARE, "{:.0%}"))
    if attention := [row.ratios["eager"] for row in trusted if row.flops]:
        lines.append(
            _share_that_reaches("attention kernels", "of torch's speed", attention, ATTENTION_RATIO, "x{:.1f}")
        )
    steps = [
        row
        for row in results.rows.get("step", [])
        if row.dtype != "float32" and row.operation and results.parity.get(row.operation) == ""
    ]
    if steps:
        best = min(steps, key=lambda row: row.milliseconds)
        hours = UNITS_A_BRAIN * best.milliseconds / 3.6e6
        scaled = f"{hours * H200_OVER_A100 / 8:.0f} h on 8 A100s"
        lines += [
            f"the best step: x{best.ratios.get('baseline', 0):.1f} the plain baseline, at least {STEP_RATIO}"
            + (
                f"; {best.flops / best.milliseconds * 1e3 / peak:.0%} of the bfloat16 peak, at least {PEAK_SHARE:.0%}"
                if (peak := results.ceilings.get("bfloat16"))
                else ""
            ),
            f"a brain ({UNITS_A_BRAIN / 1e6:.1f} M units) at the best step: {hours:.0f} h on this device",
            f"if that is an H200: {scaled}, scaled by {H200_OVER_A100:.2f}, not measured",
        ]
    return lines


def _share_that_reaches(what: str, unit: str, values: Sequence[float], aim: float, form: str) -> str:
    """How many of some rows are where they should be."""
    reached = sum(value >= aim for value in values)
    spread = "" if not values else f", from {form.format(min(values))} to {form.format(max(values))}"
    return f"{what}: {reached} of {len(values)} at {form.format(aim)} {unit} or more{spread}"


def describe() -> str:
    import triton

    commit = ""
    with contextlib.suppress(OSError):  # git may be missing
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    commit = commit or os.environ.get("GIT_COMMIT", "")  # of a copy without its history
    dry = os.environ.get(DRY_RUN)
    device = "a dry run, whose figures mean nothing" if dry else torch.cuda.get_device_name()
    return (
        f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Triton {triton.__version__}, cuDNN {torch.backends.cudnn.version()}, commit {commit or 'unknown'}"
    )


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--dry"]:
        os.environ[DRY_RUN] = "1"  # for the sections' processes
        arguments = arguments[1:]
    elif not os.environ.get(DRY_RUN) and (not torch.cuda.is_available() or torch.version.cuda is None):
        print("There is no NVIDIA GPU here: nothing was measured.", file=sys.stderr)
        return 2
    if arguments[:1] == ["--write"]:
        run_section(arguments[2], Path(arguments[1]))
        return 0
    if unknown := set(arguments) - set(SECTIONS):
        print(f"no sections: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    begin, failed = time.perf_counter(), False
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("OUT") or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / "rows.jsonl"
        rows.unlink(missing_ok=True)  # of an earlier run
        for name in arguments or SECTIONS:
            left = SECONDS - (time.perf_counter() - begin)
            if left > 10:
                failed |= not start_section(name, rows, min(left, LIMITS.get(name, left)))
                (folder / "table.txt").write_text(f"{describe()}\n{table(read_found(rows))}\n", encoding="utf-8")
            else:
                print(f"[{name}: no time is left]", flush=True)
        results = read_found(rows)
    print(f"\n{describe()}\n{table(results)}")
    rates = [
        f"{name} {rate / 1e12:.2f} T{'B' if name == 'copy' else 'FLOP'}/s" for name, rate in results.ceilings.items()
    ]
    print(f"ceilings: {', '.join(rates)}; {time.perf_counter() - begin:.0f} s; what is not here was not measured")
    return 1 if failed or not results.parity or any(results.parity.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
