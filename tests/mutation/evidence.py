"""What shows that a mutant is wrong: the compiler refuses it, a check of the verifier fails, or its graph differs."""

import importlib
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import onnx
from mutants import NOTHING, PACKAGE, Mutation, file_of, in_place_of, text_of, written

from codegen.diagnostics import Refused
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

WITNESSES = Path(__file__).parent / "witnesses.toml"
ALIVE = "the variant can be made"


@dataclass(frozen=True)
class Witness:
    """Where a mutation shows.

    Either the compiler refuses (``refused``: the first diagnostic's rule), or in a case and stage a check fails that
    the unchanged variant passes, or an operator is ``lost`` or ``gained`` by the exported graph.
    """

    family: str
    refused: str = ""
    case: str = ""
    stage: str = ""
    check: str = ""
    lost: str = ""
    gained: str = ""


def witnesses() -> dict[str, Witness]:
    """The committed examples, by name of the mutation."""
    return {name: Witness(**row) for name, row in tomllib.loads(WITNESSES.read_text("utf-8")).items()}


def row(witness: Witness) -> dict[str, str]:
    """A witness as plain data, without what is empty."""
    return {name: value for name, value in asdict(witness).items() if value}


@cache
def subject(family: str, case: str) -> Subject:
    """Upstream's answer for a case; variants have no part in it."""
    listed = cases_for(family, file_of(family).switches).cases
    return prepare(family, next(c for c in listed if c.name == case))


def refusal(family: str, mutation: Mutation) -> str:
    """The rule of the first diagnostic of a compiler without something; empty when it compiles."""
    try:
        text_of(file_of(family).path, mutation)
    except Refused as error:
        return error.diagnostics[0].rule
    return ""


def makes_a_difference(family: str, mutation: Mutation) -> bool:
    """Whether the text that the compiler writes without something is another than the one with it."""
    file = file_of(family)
    return text_of(file.path, mutation) != written(file.stem)


@contextmanager
def mutant(family: str, mutation: Mutation) -> Iterator[None]:
    """The family's variants without something, in place of the generated ones: what the runtime picks is checked.

    Raises Refused.
    """
    file = file_of(family)
    text = text_of(file.path, mutation)
    assert (text == written(file.stem)) is (mutation is NOTHING), f"{mutation.name} in {file.stem}"
    with in_place_of(file.stem, text) as module:
        head = next(f.head for f in file.generated if f.model_type == family)
        upstream = subject(family, DEFAULT).model()
        assert KVCacheTransform._finder(upstream)(type(upstream)) is vars(module)[QEFF.prefix + head]
        assert importlib.import_module(f"{PACKAGE}.{file.stem}") is module
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


def failed(found: list[Check]) -> Check | None:
    return next((check for check in found if check.status is not Status.PASSED), None)


def operators(family: str) -> frozenset[str]:
    """What the exported default variant calls, functions' bodies included; ``domain::name`` outside of ONNX's own."""
    with variant(subject(family, DEFAULT)) as (wrapper, folder):
        model = onnx.load(wrapper.export(folder), load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return frozenset(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
