"""Configurations that hand-written variants get wrong silently: here each agrees with upstream, in torch and in ONNX
Runtime.
"""

import pytest

from runtime.verify.compare import TOLERANCES
from runtime.verify.family import verify_case
from runtime.verify.known_errors import KNOWN_ERRORS, KnownError
from runtime.verify.results import Status
from runtime.verify.subject import has_effect, prepare


@pytest.mark.parametrize("known", KNOWN_ERRORS, ids=lambda known: f"{known.family}: {known.case.name}")
def test_agrees_with_upstream(known: KnownError) -> None:
    result = verify_case(known.family, known.case, ("hf", "kv", "ort"))
    assert result.status is Status.PASSED, result.message
    for stage, tolerance in TOLERANCES.items():
        worst = result.worst(stage)
        assert worst is not None and worst <= tolerance


@pytest.mark.parametrize(
    "known",
    [known for known in KNOWN_ERRORS if known.case.overrides],
    ids=lambda known: f"{known.family}: {known.case.name}",
)
def test_the_configuration_matters(known: KnownError) -> None:
    """A variant that ignored these values could not pass: upstream's logits depend on them."""
    assert has_effect(prepare(known.family, known.case)) is not False
