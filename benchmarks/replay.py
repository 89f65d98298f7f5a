"""Compiles releases with one and the same compiler and says, per release and target, what is generated and what not.

    python benchmarks/replay.py 5.9.0 5.14.1

Rows are markdown; a release is a version (pip downloads its wheel), a wheel or a folder. Kept is counted against the
families that the committed tree has. Nothing is written but the downloaded wheels, into the user's cache folder.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from codegen.acquire import acquire
from codegen.diagnostics import InputError
from codegen.drift import Side
from codegen.emit import manifest
from codegen.generation import build
from codegen.targets import TARGETS

TREE = Path(__file__).resolve().parent.parent / "generated"
NAMED = 12  # more families than this are counted


def main(names: list[str]) -> None:
    written = manifest.read(TREE / manifest.NAME)
    assert written is not None, "regraft generate comes first"
    base = {t: {f.model_type for e in written.entries.values() if e.compiled.target == t for f in e.compiled.generated}
            for t in TARGETS}  # fmt: skip
    print(f"| release | target | generated | refused | kept of {written.version} | lost | seconds |\n|{'---|' * 7}")
    for name in names:
        started = time.perf_counter()
        try:
            release = acquire(name)
            side = Side(release, build(release, TREE).compiled)
        except InputError as error:
            print(f"| {name} | - | - | - | - | {error} | - |", flush=True)
            continue
        seconds = time.perf_counter() - started
        for target in TARGETS:
            generated = {family for t, family in side.compiled if t == target}
            lost = sorted(base[target] - generated)
            why: dict[str, list[str]] = {}
            for family in lost:
                why.setdefault(_reason(side, target, family), []).append(family)
            reasons = [f"{reason}: {_listed(why[reason])}" for reason in sorted(why, key=lambda r: -len(why[r]))]
            counts = f"{len(generated)} | {len(side.families.keys() - generated)}"
            kept = f"{len(base[target]) - len(lost)} / {len(base[target])}"
            print(
                f"| {release.version} | {target} | {counts} | {kept} | {'; '.join(reasons)} | {seconds:.0f} |",
                flush=True,
            )


def _listed(families: list[str]) -> str:
    return ", ".join(families) if len(families) <= NAMED else f"{len(families)} families"


def _reason(side: Side, target: str, family: str) -> str:
    if family not in side.families:
        return "not in the mapping"
    return f"`{side.why_refused(target, family)[0].rule}`"


if __name__ == "__main__":
    main(sys.argv[1:])
