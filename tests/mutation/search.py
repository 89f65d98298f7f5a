"""Finds for every mutation a family that shows it, and writes it down: ``python tests/mutation/search.py [NAME...]``.

With ``--dry`` nothing is written. The cheapest evidence first: a refusal, then the default case in the first stage;
then, of what keeps the numbers, operators of an exported graph or launches of kernels; then the default case in the
other stages, and the other cases; within each, the families with the shortest variants first.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import cache

import witnesses
from evidence import OF, failed
from mutants import MUTATIONS, NOTHING, Mutation
from texts import applies, families_of, file_of, makes_a_difference, recorded
from witnesses import Witness, refusal

from runtime.verify.cases import DEFAULT, cases_for

FAMILIES = 6
"""How many families are tried where many have the thing: what none of them shows, none of the others will."""
INTERPRET = "TRITON_INTERPRET"


def search(mutation: Mutation) -> Witness | None:
    """The first family and evidence that shows the mutation, or None."""
    return next(_found(mutation), None)


def _found(mutation: Mutation) -> Iterator[Witness]:
    target = mutation.of.name
    evidence = OF[target]
    having = [f for c in recorded(target) for f in families_of(c)[:1] if applies(mutation, f)]
    assert having, f"no family has {mutation.name}"
    alive = []
    for family in having if mutation.lifts else having[:FAMILIES]:
        refused = refusal(family, mutation)
        if refused and not mutation.lifts:
            yield Witness(family, refused=refused)
        elif not refused and makes_a_difference(family, mutation):
            alive.append(family)
    first, *others = evidence.STAGES
    for family in alive:
        yield from _of(family, mutation, DEFAULT, first)
    if mutation.same_numbers:
        for family in alive:
            yield from evidence.beyond_numbers(family, mutation)
    for stage in others:
        for family in alive:
            yield from _of(family, mutation, DEFAULT, stage)
    for stage in evidence.STAGES:
        for family in alive:
            for case in cases_for(family, file_of(target, family).switches).cases[1:]:
                yield from _of(family, mutation, case.name, stage)


def _of(family: str, mutation: Mutation, case: str, stage: str) -> Iterator[Witness]:
    evidence, started = OF[mutation.of.name], time.process_time()
    try:
        with evidence.mutant(family, mutation):
            wrong = failed(evidence.checks(family, case, stage))
    except (RuntimeError, KeyError):  # upstream refuses the case
        return
    if wrong is not None:
        print(f"  {wrong.scenario}: {wrong.error or ''} {wrong.message}", file=sys.stderr)
    if wrong is not None and (mutation.lifts or _passes(mutation.of.name, family, case, stage)):
        yield Witness(family, case=case, stage=stage, check=wrong.scenario)
    print(f"  {mutation.name}: {family} {case} {stage} {time.process_time() - started:.1f} s", file=sys.stderr)


@cache
def _passes(target: str, family: str, case: str, stage: str) -> bool:
    with OF[target].mutant(family, NOTHING[target]):
        return failed(OF[target].checks(family, case, stage)) is None


def main(names: list[str], dry: bool) -> int:
    found = witnesses.read()
    blind = []
    for name in names or MUTATIONS:
        started = time.process_time()
        witness = search(MUTATIONS[name])
        found.pop(name, None)
        if witness is None:
            blind.append(name)
        else:
            found[name] = witness
        print(f"{name}: {witness} ({time.process_time() - started:.1f} s)", flush=True)
        if not dry:
            witnesses.write(found)
    print("nothing shows: " + (", ".join(blind) or "none"))
    return bool(blind)


if __name__ == "__main__":
    if os.environ.get(INTERPRET) != "1":  # kernels run on any machine, if that is chosen before triton is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {INTERPRET: "1"})
    sys.exit(main([name for name in sys.argv[1:] if name != "--dry"], "--dry" in sys.argv))
