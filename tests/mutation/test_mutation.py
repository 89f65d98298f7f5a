"""Without any one rule or fact the compiler refuses, or the verifier fails: no rule is decoration, no check is blind.

The committed witnesses are checked here one by one; `search.py` finds them, and finds them anew when a rule, a check or
upstream changes.
"""

import pytest
from evidence import Witness, checks, failed, makes_a_difference, mutant, operators, refusal, witnesses
from mutants import MUTATIONS, NOTHING, applies, file_of
from search import search


def test_every_rule_and_fact_has_a_witness() -> None:
    assert sorted(witnesses()) == sorted(MUTATIONS), "run: python tests/mutation/search.py NAME"


@pytest.mark.parametrize("name", MUTATIONS)
def test_its_absence_shows(name: str) -> None:
    witness, mutation = witnesses()[name], MUTATIONS[name]
    family = witness.family
    assert applies(mutation, file_of(family))
    assert not refusal(family, NOTHING)
    assert refusal(family, mutation) == witness.refused
    if not witness.refused:
        assert makes_a_difference(family, mutation)
        (_graph_differs if witness.lost or witness.gained else _check_fails)(witness, name)


def _check_fails(witness: Witness, name: str) -> None:
    what = (witness.family, witness.case, witness.stage, witness.check)
    with mutant(witness.family, MUTATIONS[name]):
        wrong = failed(checks(*what))
    assert wrong is not None and wrong.scenario == witness.check
    with mutant(witness.family, NOTHING):
        assert failed(checks(*what)) is None


def _graph_differs(witness: Witness, name: str) -> None:
    with mutant(witness.family, NOTHING):
        whole = operators(witness.family)
    with mutant(witness.family, MUTATIONS[name]):
        less = operators(witness.family)
    assert witness.lost in (whole - less if witness.lost else {""})
    assert witness.gained in (less - whole if witness.gained else {""})


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_search_finds_a_witness(name: str) -> None:
    assert search(MUTATIONS[name]) is not None
