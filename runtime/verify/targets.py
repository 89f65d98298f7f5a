"""The sets of variants there are, and how each is verified."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from runtime.verify import family
from runtime.verify.pool import Work
from runtime.verify.results import FamilyResult
from runtime.verify.training import family as training_family


@dataclass(frozen=True)
class Measure:
    """A number that is told of each family: the largest error of some quantities in a stage."""

    name: str
    title: str
    stage: str
    quantities: tuple[str, ...] = ("logits",)

    def of(self, result: FamilyResult) -> float | None:
        """The largest error over all cases, None where nothing was measured."""
        return result.worst(self.stage, self.quantities)


@dataclass(frozen=True)
class Target:
    """A set of variants.

    stages: how deep it can be verified, upstream itself first; work: what verifies one family, by the stages of its
    request; environment: what a process needs for a stage beyond the usual.
    """

    name: str
    stages: tuple[str, ...]
    measures: tuple[Measure, ...]
    work: Work
    environment: Mapping[str, Mapping[str, str]]

    def environment_for(self, stages: Collection[str]) -> dict[str, str]:
        return {k: v for stage, needs in self.environment.items() if stage in stages for k, v in needs.items()}


QEFF: Final = Target(
    "qeff",
    family.STAGES,
    (Measure("kv", "torch error", "kv"), Measure("ort", "ONNX Runtime error", "ort")),
    family.verify_family,
    {},
)
RMPAD: Final = Target(
    "rmpad",
    training_family.STAGES,
    (
        Measure("logits", "logits error", "packed"),
        Measure("loss", "loss error", "packed", ("loss", "trained loss", "router")),
        Measure("grad", "gradient error", "packed", ("grad",)),
        Measure("isolation", "isolation error", "packed", ("isolation",)),
        Measure("trained", "training error", "packed", ("parameters",)),
        Measure("liger", "Liger error", "liger", ("logits", "loss", "grad")),
    ),
    training_family.verify_family,
    # Kernels run without a device in Triton's interpreter, which must be on before Triton is imported.
    {"liger": {"TRITON_INTERPRET": "1"}},
)

TARGETS: Final = {target.name: target for target in (QEFF, RMPAD)}


def target_named(name: str) -> Target:
    """Raises ValueError with the names there are."""
    try:
        return TARGETS[name]
    except KeyError:
        raise ValueError(f"unknown target {name!r}; there are {', '.join(TARGETS)}") from None
