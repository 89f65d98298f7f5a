"""Finds for every mutation a family that shows it, and writes them down: ``python tests/mutation/search.py [NAME...]``.

The cheapest evidence first: a refusal, then checks in torch, then of facts the exported graph's operators, then checks
in ONNX Runtime, then the other cases; within each, the families with the shortest variants first.
"""

import sys
import time
from collections.abc import Iterator
from functools import cache

import tomlkit
from evidence import WITNESSES, Witness, checks, failed, makes_a_difference, mutant, operators, refusal, row, witnesses
from mutants import MUTATIONS, NORMS, NOTHING, ROTARIES, Mutation, applies, file_of, recorded

from runtime.verify.cases import DEFAULT, cases_for

FAMILIES = 6
"""How many families are tried where many have the thing: what none of them shows, none of the others will."""


def search(mutation: Mutation) -> Witness | None:
    """The first family and evidence that shows the mutation, or None."""
    return next(_found(mutation), None)


def _found(mutation: Mutation) -> Iterator[Witness]:
    families = [c.generated[0].model_type for c in recorded() if applies(mutation, c)][:FAMILIES]
    assert families, f"no family has {mutation.name}"
    alive = []
    for family in families:
        refused = refusal(family, mutation)
        if refused:
            yield Witness(family, refused=refused)
        elif makes_a_difference(family, mutation):
            alive.append(family)
    for family in alive:
        yield from _of(family, mutation, DEFAULT, "kv")
    if mutation in (*NORMS, *ROTARIES):  # in float32 the same numbers: only the graph shows them
        for family in alive:
            yield from _of_graph(family, mutation)
    for family in alive:
        yield from _of(family, mutation, DEFAULT, "ort")
    for stage in ("kv", "ort"):
        for family in alive:
            for case in cases_for(family, file_of(family).switches).cases[1:]:
                yield from _of(family, mutation, case.name, stage)


def _of(family: str, mutation: Mutation, case: str, stage: str) -> Iterator[Witness]:
    started = time.process_time()
    try:
        with mutant(family, mutation):
            wrong = failed(checks(family, case, stage))
    except (RuntimeError, KeyError):  # upstream refuses the case
        return
    if wrong is not None:
        print(f"  {wrong.scenario}: {wrong.error or ''} {wrong.message}", file=sys.stderr)
    if wrong is not None and _passes(family, case, stage):
        yield Witness(family, case=case, stage=stage, check=wrong.scenario)
    print(f"  {mutation.name}: {family} {case} {stage} {time.process_time() - started:.1f} s", file=sys.stderr)


@cache
def _passes(family: str, case: str, stage: str) -> bool:
    with mutant(family, NOTHING):
        return failed(checks(family, case, stage)) is None


def _of_graph(family: str, mutation: Mutation) -> Iterator[Witness]:
    with mutant(family, NOTHING):
        whole = operators(family)
    with mutant(family, mutation):
        less = operators(family)
    for lost in sorted(whole - less, key=lambda name: ("::" not in name, name)):  # the engine's own come first
        yield Witness(family, lost=lost)
    for gained in sorted(less - whole):
        yield Witness(family, gained=gained)


def main(names: list[str]) -> int:
    found = witnesses() if WITNESSES.is_file() else {}
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
        ordered = {n: row(found[n]) for n in MUTATIONS if n in found}
        WITNESSES.write_text("# Written by tests/mutation/search.py.\n\n" + tomlkit.dumps(ordered), "utf-8")
    print("nothing shows: " + (", ".join(blind) or "none"))
    return bool(blind)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
