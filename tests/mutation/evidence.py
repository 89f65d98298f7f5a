"""What shows that a mutant is wrong, for every target alike; what differs is in a target's own module."""

import qeff_evidence
import rmpad_evidence
from mutants import MUTATIONS, NOTHING
from texts import applies, makes_a_difference
from witnesses import Witness, refusal

from codegen.targets.qeff import QEFF
from codegen.targets.rmpad import RMPAD
from runtime.verify.results import Check, Status

OF = {QEFF.name: qeff_evidence, RMPAD.name: rmpad_evidence}


def failed(found: list[Check]) -> Check | None:
    """The first check that failed; what upstream itself does not do is no failure."""
    return next((c for c in found if c.status not in (Status.PASSED, Status.UPSTREAM_REFUSES)), None)


def confirm(name: str, witness: Witness) -> None:
    """Asserts that a mutation shows where the witness says, and that without it nothing does."""
    mutation, family = MUTATIONS[name], witness.family
    nothing, evidence = NOTHING[mutation.of.name], OF[mutation.of.name]
    assert applies(mutation, family)
    assert refusal(family, nothing) == mutation.lifts
    assert refusal(family, mutation) == witness.refused
    if witness.refused:
        return
    assert makes_a_difference(family, mutation)
    if not witness.check:
        assert witness in evidence.beyond_numbers(family, mutation)
        return
    what = (family, witness.case, witness.stage, witness.check)
    with evidence.mutant(family, mutation):
        wrong = failed(evidence.checks(*what))
    assert wrong is not None and wrong.scenario == witness.check
    if not mutation.lifts:
        with evidence.mutant(family, nothing):
            right = evidence.checks(*what)
        assert failed(right) is None
        assert witness.check in evidence.SILENT or any(check.status is Status.PASSED for check in right)
