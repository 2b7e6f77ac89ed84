"""Measure the proxy: `python -m benchmarks.run [--quick] [--only NAME …]`. See README.md.

Prints each figure beside its target and writes benchmarks/results/<commit>.json.
"""

from __future__ import annotations

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

from benchmarks import figures, stack
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
    bound = f"{'≥' if figure.at_least else '≤'} {figure.target:g} {figure.unit}"
    verdict = "met" if figure.is_met else "MISSED"
    value = f"{figure.value:g} {figure.unit}"
    print(f"{figure.name:<58}{value:>12}   {bound:<10} {verdict}", flush=True)


def measure(names: list[str], plan: Plan) -> Iterator[Figure]:
    """Measure and show the named figures; one that cannot be measured is reported and skipped."""
    for name in names:
        try:
            for figure in figures.ALL[name](plan):
                show(figure)
                yield figure
        except stack.Unmeasurable as reason:
            print(f"{name} could not be measured: {reason}", file=sys.stderr, flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: some seconds a figure")
    parser.add_argument("--only", nargs="+", choices=figures.ALL, metavar="NAME", default=[])
    return parser.parse_args(arguments)


def write_results(options: argparse.Namespace, result: dict[str, Any]) -> Path:
    name = commit() + ("-quick" if options.quick else "") + ("-partly" if options.only else "")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"commit": name} | result, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
    return path.relative_to(stack.ROOT)


def run(options: argparse.Namespace) -> int:
    """Measure; return 0 if everything was measured, whether its target was met or missed."""
    began, names, described = time.monotonic(), options.only or list(figures.ALL), machine()
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    # A process that is ending may still write to the folder.
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        plan = quick_plan(Path(folder)) if options.quick else Plan(Path(folder))
        found = list(measure(names, plan))
    seconds = round(time.monotonic() - began)
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": described,
        "settings": asdict(plan) | {"folder": None, "workers": stack.WORKERS},
        "figures": [asdict(figure) | {"is_met": figure.is_met} for figure in found],
    }
    print(f"{write_results(options, result)}, after {seconds} s")
    return 0 if {figure.of for figure in found} == set(names) else 1


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    # Terminated, it ends the processes it has started, as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(options)
    except stack.Unmeasurable as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
