"""Ratios of the compiler to bare LibCST parsing of the same files, in CPU seconds of one run (children included).

    python benchmarks/compile.py [--json]

The machine may be noisy: only the ratios of one run mean anything.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time

PARSE = """
import libcst
from codegen.discovery import discover
from codegen.source import open_release
release = open_release(None)
for path in sorted({f.path for f in discover(release)}):
    libcst.parse_module(release.text(path))
"""


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        generate = [sys.executable, "-m", "codegen", "generate", "--out", f"{out}/generated"]
        parse = cpu_seconds([sys.executable, "-c", PARSE])
        started = time.perf_counter()
        cold = cpu_seconds(generate)
        wall = time.perf_counter() - started
        warm = cpu_seconds(generate)
    result = {
        "bare parse": {"cpu_seconds": round(parse, 1), "ratio": 1.0},
        "cold generate": {"cpu_seconds": round(cold, 1), "ratio": round(cold / parse, 2), "wall": round(wall, 1)},
        "warm generate": {"cpu_seconds": round(warm, 1), "ratio": round(warm / parse, 3)},
    }
    if "--json" in sys.argv:
        print(json.dumps(result, indent=2))
        return
    for name, row in result.items():
        print(f"{name:<14} {row['cpu_seconds']:>7} CPU s  {row['ratio']:>6}x")


if __name__ == "__main__":
    main()
