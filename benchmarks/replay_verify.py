"""Moves copies of this project to other releases, installs each, and verifies every family's numbers there.

    python benchmarks/replay_verify.py 5.0.0 5.9.0 5.14.1

Per release: a clone of the committed project in a temporary folder, `regraft bump`, a new virtual environment of that
release (`make install`), then `regraft verify --all` of both targets, every stage, with the default configuration of
each family. Rows are markdown. A release takes about 2 GB of disk while it runs, and some 15 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
TARGETS = {"qeff": ("hf", "kv", "ort"), "rmpad": ("hf", "packed", "liger")}
PASSED = "passed"


def main(releases: list[str]) -> None:
    print(f"| release | target | generated | passed | largest error of a logit | not passed | minutes |\n|{'---|' * 7}")
    for release in releases:
        with tempfile.TemporaryDirectory(prefix=f"regraft-{release}-") as folder:
            copy = Path(folder) / "project"
            _moved(release, copy)
            for target, stages in TARGETS.items():
                print(_row(release, target, stages, copy), flush=True)


def _moved(release: str, copy: Path) -> None:
    """A copy of the project that is made for a release, and its virtual environment."""
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(copy)], check=True)
    bump = [sys.executable, "-m", "codegen", "bump", release, "--markdown"]
    ended = subprocess.run(
        bump, cwd=copy, env=_environment() | {"PYTHONPATH": str(copy)}, capture_output=True, text=True
    )
    if ended.returncode not in (0, 1):  # 1: it was written, and something differs
        raise SystemExit(ended.stderr)
    subprocess.run(["make", "install"], cwd=copy, env=_environment(), check=True, stdout=sys.stderr)


def _row(release: str, target: str, stages: tuple[str, ...], copy: Path) -> str:
    started = time.perf_counter()
    command = [".venv/bin/regraft", "verify", "--all", "--target", target, "--cases", "default", "--json"]
    ended = subprocess.run(command, cwd=copy, env=_environment(), stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}")
    results: list[dict[str, Any]] = json.loads(ended.stdout)
    errors = Counter[str]()
    for check in (c for result in results for case in result["cases"] for c in case["checks"]):
        if check["error"] is not None and check["quantity"] == "logits":
            errors[check["stage"]] = max(errors[check["stage"]], float(check["error"]))
    largest = ", ".join(f"{stage} {errors[stage]:.0e}" for stage in stages if stage in errors)
    bad = [r for r in results if r["status"] != PASSED]
    said = "; ".join(f"{r['family']} ({r['status']}): {_why(r)}" for r in bad)
    minutes = (time.perf_counter() - started) / 60
    return f"| {release} | {target} | {len(results)} | {len(results) - len(bad)} | {largest} | {said} | {minutes:.0f} |"


def _why(result: dict[str, Any]) -> str:
    said = result["message"] or next((c["message"] for c in result["cases"] if c["status"] != PASSED), "")
    return " ".join(str(said).replace("|", "/").split())[:160]


def _environment() -> dict[str, str]:
    """This one's, without what would lead a copy back to this project."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main(sys.argv[1:])
