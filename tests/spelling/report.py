"""Writes docs/spelling.md: ``python tests/spelling/report.py [--every N] [--jobs N] [--each N] [--out FILE]``.

Every N-th modeling file is rewritten in every spelling and mutated in every kind. Of what texts cannot decide, and of
what variants carry or inherit, some of each kind and target are run and compared with the rewritten upstream.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from followed import Followed
from numbers_of import Found, measure
from trials import Mutated, Respelled, agreement, chosen, mutate, over, respell, trial
from variants import ROOT, Verdict, compiled_original, files

from codegen.targets import TARGETS

INTRODUCTION = """# Spelling

Upstream says the same in other words between releases, and something else in nearly the same words. Both are tried here
on upstream's own files (transformers 5.5.4): {files} modeling files, {families} families, targets qeff and rmpad.

```sh
{command}
```

`tests/spelling` runs a part of this with every `make test`.
"""
SPELLINGS = """## Rewrites that keep the meaning

Each is made everywhere in a file at once. *same*: the variant's text is the same, or every definition and every
mapping entry has the same fingerprint, as it is or with the same rewrite made in both. *refused*: the family is
refused, with the upstream line. *other text*: the variant differs by more than names (a kernel less, a general form
where there was a special one); of these the rewritten upstream and its variant were run and their numbers compared.
"""
MEANINGS = """## Mutants that change the meaning

One small change in one definition that a variant is derived from or relies on. *seen*: `regraft drift` calls the method
semantic. *carried*: the variant's own text says something else too. *inherited*: the variant runs the changed code
itself. *refused*: by name. *replaced*: the variant has something of its own in that place, and only numbers can tell:
what a target leaves out by design (a loss, the default of positions, growing caches) has no part in what it computes.
"""
NUMBERS = """## Numbers

A mutant or rewrite and the variant compiled from it, run on tiny models as `regraft verify` does (qeff: torch stage;
rmpad: packed stage). *follows*: they agree. *shows*: the change also makes a difference to the numbers there: what was
carried does not agree with the variant of the original, what was inherited gives upstream other numbers than before.
*upstream fails*: the mutant itself does not run, so there is nothing to follow. *stops*: the variant raises an error.
"""


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--every", type=int, default=1)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--each", type=int, default=2)
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "spelling.md")
    given = options.parse_args(arguments)
    paths = [path for path in list(files())[:: given.every] if _has_variants(path)]
    respelled = list(over(paths, respell, given.jobs))
    _say(f"{len(respelled)} rewrites")
    mutated = list(over(paths, mutate, given.jobs))
    _say(f"{len(mutated)} mutants")
    undecided = [row for row in respelled if row.verdict is Verdict.UNDECIDED]
    replaced = [row for row in mutated if row.followed is Followed.REPLACED]
    followed = [row for row in mutated if row.followed in (Followed.CARRIED, Followed.INHERITED)]
    wrong = _numbers(chosen(undecided, lambda r: (r.spelling, r.target), given.each), given.jobs)
    lost = _numbers(chosen(replaced, lambda r: (r.kind, r.target), given.each * 2), given.jobs)
    kept = chosen(followed, lambda r: (r.kind, r.target, r.followed), max(1, given.each // 2))
    follows = _numbers(kept, given.jobs)
    shows = _effects([row for row, found in follows.items() if found.upstream], follows, given.jobs)
    families = {f.model_type for p in paths for t in TARGETS for f in compiled_original(p, t).generated}
    parts = [
        INTRODUCTION.format(files=len(paths), families=len(families), command=_command(arguments)),
        SPELLINGS,
        _spelling_table(respelled, wrong),
        MEANINGS,
        _meaning_table(mutated, lost),
        NUMBERS,
        _number_table(follows, shows),
        *_failures({**wrong, **lost, **follows}),
    ]
    given.out.write_text("\n".join(parts), "utf-8")
    return 0


def _has_variants(path: str) -> bool:
    return any(compiled_original(path, target).text is not None for target in TARGETS)


def _command(arguments: Sequence[str]) -> str:
    return " ".join(["python tests/spelling/report.py", *arguments])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _numbers(rows: Sequence[Respelled | Mutated], jobs: int) -> dict[Respelled | Mutated, Found]:
    found = dict(zip(rows, (f for _, f in measure([trial(row) for row in rows], jobs)), strict=True))
    for row, one in found.items():
        if agreement(one) in ("differs", "stops"):
            _say(f"{agreement(one)}: {row} {one.message}")
    _say(f"{len(found)} run")
    return found


def _effects(
    rows: Sequence[Respelled | Mutated], found: dict[Respelled | Mutated, Found], jobs: int
) -> dict[Respelled | Mutated, bool]:
    """Whether a change makes a difference to the numbers; see NUMBERS."""
    trials = [trial(row, variant_of_original=True) for row in rows]
    shown = {}
    for row, (_, with_original) in zip(rows, measure(trials, jobs), strict=True):
        assert isinstance(row, Mutated)
        shown[row] = not with_original.agrees
    unchanged = {(row.path, row.target): row for row in rows}
    originals = [trial_of_original(row) for row in unchanged.values()]
    usual = dict(zip(unchanged, (f.upstream for _, f in measure(originals, jobs)), strict=True))
    for row in rows:
        if isinstance(row, Mutated) and row.followed is Followed.INHERITED:
            shown[row] = found[row].upstream != usual[row.path, row.target]
    return shown


def trial_of_original(row: Respelled | Mutated):  # type: ignore[no-untyped-def]
    from numbers_of import Trial
    from variants import original

    family = compiled_original(row.path, row.target).generated[0].model_type
    return Trial(family, row.path, row.target, original(row.path))


def _spelling_table(rows: Sequence[Respelled], numbers: dict[Respelled | Mutated, Found]) -> str:
    lines = []
    for name in dict.fromkeys(row.spelling for row in rows):
        for target in TARGETS:
            mine = [row for row in rows if (row.spelling, row.target) == (name, target)]
            run = [agreement(found) for row, found in numbers.items() if row in mine]
            count = Counter(row.verdict for row in mine)
            same = count[Verdict.SAME] + count[Verdict.NAMES]
            other = count[Verdict.UNDECIDED]
            cells = (
                len(mine),
                same,
                count[Verdict.REFUSED],
                other,
                len(run),
                run.count("differs") + run.count("stops"),
            )
            lines.append((name, target, *cells))
    return _table(("rewrite", "target", "files", "same", "refused", "other text", "of these run", "WRONG"), lines)


def _meaning_table(rows: Sequence[Mutated], numbers: dict[Respelled | Mutated, Found]) -> str:
    lines = []
    for kind in sorted({row.kind for row in rows}):
        mine = [row for row in rows if row.kind == kind]
        run = [agreement(found) for row, found in numbers.items() if isinstance(row, Mutated) and row.kind == kind]
        count = Counter(row.followed for row in mine)
        seen = sum(row.seen for row in mine)
        places = (count[Followed.CARRIED], count[Followed.INHERITED], count[Followed.REFUSED], count[Followed.REPLACED])
        lines.append((kind, len(mine), seen, *places, len(run), run.count("upstream fails"), run.count("differs")))
    head = ("mutant", "variants", "seen", "carried", "inherited", "refused", "replaced")
    return _table((*head, "of these run", "upstream fails", "LOST"), lines)


def _number_table(follows: dict[Respelled | Mutated, Found], shows: dict[Respelled | Mutated, bool]) -> str:
    lines = []
    for how in (Followed.CARRIED, Followed.INHERITED):
        for target in TARGETS:
            mine = {row: f for row, f in follows.items()
                    if isinstance(row, Mutated) and (row.followed, row.target) == (how, target)}  # fmt: skip
            said = [agreement(found) for found in mine.values()]
            shown = sum(shows.get(row, False) for row in mine)
            ended = (said.count("upstream fails"), said.count("stops"), said.count("differs"))
            cells = (len(mine), said.count("agrees"), shown, *ended)
            lines.append((how.value, target, *cells))
    return _table(("variant", "target", "run", "follows", "shows", "upstream fails", "stops", "differs"), lines)


def _failures(found: dict[Respelled | Mutated, Found]) -> list[str]:
    wrong = [(row, one) for row, one in found.items() if agreement(one) in ("differs", "stops")]
    lines = []
    wrong.sort(key=lambda pair: repr(pair[0]))
    for row, one in wrong:
        what = row.spelling if isinstance(row, Respelled) else f"{row.kind} in `{row.where}`"
        lines.append((f"`{row.path.rsplit('/')[-1]}`", row.target, what, one.message[:100]))
    return ["## What differs\n", _table(("file", "target", "change", "found"), lines)] if lines else []


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    listed = [f"| {' | '.join(str(value).replace('|', '/') for value in row)} |" for row in rows]
    sums = [[row[i] for row in rows] for i in range(len(head))]
    total = [str(sum(v for v in column if isinstance(v, int))) if any(isinstance(v, int) for v in column) else ""
             for column in sums]  # fmt: skip
    total[0] = "all"
    last = [f"| {' | '.join(total)} |"] if any(total[1:]) else []
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *listed, *last, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
