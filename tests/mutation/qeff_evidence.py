"""What shows that a mutant of the inference target is wrong: a check of the verifier fails, or its graph differs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import onnx
from mutants import NOTHING, Mutation
from texts import file_of, head_of, in_place
from witnesses import Witness

from codegen.targets.qeff import QEFF
from runtime.qeff.transforms import KVCacheTransform
from runtime.verify.cases import DEFAULT, cases_for
from runtime.verify.continuous import NAME as CONTINUOUS
from runtime.verify.continuous import check_continuous
from runtime.verify.interface import NAME as INTERFACE
from runtime.verify.interface import STAGE as INTERFACE_STAGE
from runtime.verify.interface import check_interface
from runtime.verify.results import Check, Status
from runtime.verify.scenarios import ESSENTIAL, SCENARIOS
from runtime.verify.stages import check_stages, describe, variant
from runtime.verify.subject import Subject, prepare

ALIVE = "the variant can be made"
STAGES = ("kv", "ort")
SILENT = frozenset({ALIVE, "export"})
"""Checks that are there only where they fail."""


@cache
def subject(family: str, case: str) -> Subject:
    """Upstream's answer for a case; variants have no part in it."""
    listed = cases_for(family, file_of(QEFF.name, family).switches).cases
    return prepare(family, next(c for c in listed if c.name == case))


@contextmanager
def mutant(family: str, mutation: Mutation) -> Iterator[None]:
    """The family's variants without something, in place of the generated ones: what the runtime picks is checked.

    Raises Refused.
    """
    with in_place(family, mutation) as module:
        upstream = subject(family, DEFAULT).model()
        swapped_in = vars(module)[QEFF.prefix + head_of(QEFF.name, family)]
        assert KVCacheTransform._finder(upstream)(type(upstream)) is swapped_in
        yield


def checks(family: str, case: str, stage: str, name: str = "") -> list[Check]:
    """The verifier's checks of one stage, or those needed for the one of a name, with whatever stands in the generated
    module's place."""
    asked = subject(family, case)
    scenarios = tuple(s for s in (SCENARIOS if case == DEFAULT else ESSENTIAL) if name in ("", ALIVE, s.name))
    found: list[Check] = []
    try:
        if scenarios or name not in (CONTINUOUS, INTERFACE):  # an export is part of it
            found += check_stages(asked, (stage,), scenarios)
        if case == DEFAULT and name in ("", CONTINUOUS):
            found += check_continuous(asked, (stage,))
        if case == DEFAULT and stage == INTERFACE_STAGE and name in ("", INTERFACE):
            found.append(check_interface(asked))
    except Exception as failure:
        found.append(Check(stage, ALIVE, Status.FAILED, message=describe(failure)))
    return found


def beyond_numbers(family: str, mutation: Mutation) -> Iterator[Witness]:
    """Operators that the exported graph loses or gains, the engine's own first: in float32 a norm and a table of a
    rotary embedding give the same numbers, and only the graph shows them. Raises Refused."""
    with mutant(family, NOTHING[QEFF.name]):
        whole = operators(family)
    with mutant(family, mutation):
        less = operators(family)
    for lost in sorted(whole - less, key=lambda name: ("::" not in name, name)):
        yield Witness(family, lost=lost)
    for gained in sorted(less - whole):
        yield Witness(family, gained=gained)


def operators(family: str) -> frozenset[str]:
    """What the exported default variant calls, functions' bodies included; ``domain::name`` outside of ONNX's own."""
    with variant(subject(family, DEFAULT)) as (wrapper, folder):
        model = onnx.load(wrapper.export(folder), load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return frozenset(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
