"""Measure the proxy: `python -m benchmarks.run [--quick] [--only NAME …]`. See README.md.

Prints each figure beside its target and writes benchmarks/results/<commit>.json.
"""

import argparse
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import stack
from benchmarks.figures import ALL, Figures
from benchmarks.figures.plan import Figure, Plan, quick_plan

RESULTS = stack.ROOT / "benchmarks" / "results"


def output_of(*command: str) -> str:
    """Return what a program prints, on either stream; "" if it cannot be run or fails."""
    try:
        found = subprocess.run(command, cwd=stack.ROOT, capture_output=True, text=True, timeout=10)
    except OSError:
        return ""
    return (found.stdout + found.stderr).strip() if found.returncode == 0 else ""


def commit() -> str:
    """Return the short name of the commit, with `-dirty` if the tree differs from it."""
    name = output_of("git", "rev-parse", "--short", "HEAD") or "no-commit"
    return name + ("-dirty" if output_of("git", "status", "--porcelain") else "")


def machine() -> dict[str, Any]:
    """Return everything that absolute values depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": output_of(stack.tool("nginx"), "-v").rpartition("/")[2],
        "sqlite": sqlite3.sqlite_version,
        "gunicorn": version("gunicorn"),
        "flask": version("flask"),
    }


def show(figure: Figure) -> None:
    """Print one figure as a line of the table."""
    bound = verdict = ""
    if figure.target is not None:
        bound = f"{'≥' if figure.at_least else '≤'} {figure.target:g} {figure.unit}"
        verdict = "met" if figure.is_met else "MISSED"
    value = f"{figure.value:g} {figure.unit}"
    print(f"{figure.name:<58}{value:>12}   {bound:<10} {verdict}", flush=True)


def measure(wanted: Figures, plan: Plan) -> Iterator[Figure]:
    """Measure and show figures; one that cannot be measured is reported and skipped."""
    for name, figures_of in wanted.items():
        try:
            for figure in figures_of(plan):
                show(figure)
                yield figure
        except stack.Unmeasurable as reason:
            print(f"{name} could not be measured: {reason}", file=sys.stderr, flush=True)


def parse_arguments(choices: Figures) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a smoke test: some seconds a figure")
    parser.add_argument("--only", nargs="+", choices=choices, metavar="NAME", default=[])
    return parser.parse_args()


def write_results(options: argparse.Namespace, suffix: str, result: dict[str, Any]) -> Path:
    name = commit() + suffix
    name += ("-quick" if options.quick else "") + ("-partly" if options.only else "")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"commit": name} | result, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
    return path.relative_to(stack.ROOT)


def run(options: argparse.Namespace, all_figures: Figures, suffix: str) -> int:
    """Measure; return 0 if everything was measured, whether its target was met or missed."""
    began, described = time.monotonic(), machine()
    wanted = {name: all_figures[name] for name in options.only or all_figures}
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    # A process that is ending may still write to the folder.
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        plan = quick_plan(Path(folder)) if options.quick else Plan(Path(folder))
        found = list(measure(wanted, plan))
    seconds = round(time.monotonic() - began)
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": described,
        "settings": asdict(plan) | {"folder": None, "workers": stack.WORKERS},
        "figures": [asdict(figure) | {"is_met": figure.is_met} for figure in found],
    }
    print(f"{write_results(options, suffix, result)}, after {seconds} s")
    return 0 if {figure.of for figure in found} == wanted.keys() else 1


def main(all_figures: Figures, suffix: str = "") -> int:
    """Measure what the command line says; `suffix` is added to the name of the results."""
    options = parse_arguments(all_figures)
    # Terminated, it ends the processes it has started, as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(options, all_figures, suffix)
    except stack.Unmeasurable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(ALL))
