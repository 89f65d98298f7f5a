"""Training variants agree with upstream where hand-written ones are known to go wrong without an error message; and one
of them with Liger's kernels.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from runtime.verify.cases import Case
from runtime.verify.results import Status
from runtime.verify.run import verify
from runtime.verify.sizes import WINDOW
from runtime.verify.targets import RMPAD
from runtime.verify.training.family import verify_case
from runtime.verify.training.variants import PATCHES


@dataclass(frozen=True)
class Known:
    """A family, a configuration of it, and what goes wrong there elsewhere."""

    family: str
    error: str
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def case(self) -> Case:
        return Case(self.error, self.overrides) if self.overrides else Case("default")


KNOWN = (
    Known("llama", "targets across the ends of sequences, or shifted at every rank"),
    Known("granite", "multipliers of scores, residuals and logits are lost"),
    Known("gemma2", "scores and logits are not capped, windows not alternating"),
    Known("mistral", "the window is ignored"),
    Known("qwen3", "windows per layer", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    Known("gpt_oss", "sinks are dropped"),
    Known("mixtral", "the routers' loss counts padding, or has the shape of the padded batch"),
    Known("opt", "learned positions are counted through the row"),
    Known("mpt", "restarting positions are not seen by a type that takes none"),
    Known("bart", "labels that are not shifted are"),
)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.family}: {known.error}")
def test_agrees_with_upstream(known: Known) -> None:
    result = verify_case(known.family, known.case, {"packed": PATCHES["packed"]})
    assert result.status is Status.PASSED, result.message
    for quantities in (("logits",), ("loss",), ("grad",)):
        worst = result.worst("packed", quantities)
        assert worst is not None and worst <= 1e-4


def test_kernels_agree_with_upstream() -> None:
    """In a process of its own: Triton's interpreter must be on before Triton is imported."""
    (result,) = verify(["llama"], ("hf", "liger"), cases=("default",), target=RMPAD)
    assert result.status is Status.PASSED, result.message
    (case,) = result.cases
    (kernels,) = [check for check in case.checks if check.quantity == "kernels"]
    assert {part.split(" ")[0] for part in kernels.message.split(", ")} >= {"rms_norm", "rope", "swiglu"}
    assert "fused_linear_cross_entropy" in kernels.message
