"""What shows that a mutant of the training target is wrong: a check of the verifier fails, or a kernel does not run."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

from mutants import NOTHING, Mutation
from texts import file_of, head_of, in_place
from witnesses import Witness

from codegen.targets.rmpad import RMPAD
from runtime import training
from runtime.training import monkey_patch
from runtime.training.features import KEYWORDS
from runtime.training.features import RMPAD as PADDING_REMOVED
from runtime.training.kernels import interpreter
from runtime.verify.cases import DEFAULT, cases_for
from runtime.verify.factory import model_class
from runtime.verify.results import Check
from runtime.verify.training.scenarios import ESSENTIAL, PACKED, scenarios_for
from runtime.verify.training.sequences import padded_right
from runtime.verify.training.subject import Subject, prepare
from runtime.verify.training.trial import Trial
from runtime.verify.training.variants import packed

STAGES = {"packed": packed}
SILENT: frozenset[str] = frozenset()


@cache
def subject(family: str, case: str) -> Subject:
    """A case, and upstream's numbers for it; variants have no part in it."""
    listed = cases_for(family, file_of(RMPAD.name, family).switches).cases
    return prepare(family, next(c for c in listed if c.name == case))


@contextmanager
def mutant(family: str, mutation: Mutation) -> Iterator[monkey_patch.MonkeyPatcher]:
    """The family's variants without something, in a registry of their own, in place of the generated ones: what the
    runtime applies is checked. Raises Refused.
    """
    registry = monkey_patch.MonkeyPatcher(index=f"generated.{RMPAD.name}")
    with (
        mock.patch.object(monkey_patch, "MONKEY_PATCHER", registry),
        mock.patch.object(training, "MONKEY_PATCHER", registry),
        in_place(family, mutation) as module,
    ):
        head = head_of(RMPAD.name, family)
        for patch in registry[family].values():
            assert getattr(patch, "__globals__", None) is vars(module)
        upstream = next(cls for cls in vars(module)["VARIANTS"] if cls.__name__ == head)
        assert upstream is model_class(family)
        assert issubclass(vars(module)["VARIANTS"][upstream].cls, vars(module)[RMPAD.prefix + head])
        yield registry


def checks(family: str, case: str, stage: str, name: str = "") -> list[Check]:
    """The verifier's checks of a stage, or those of a name, with whatever stands in the generated module's place."""
    asked = subject(family, case)
    listed = scenarios_for(asked, PACKED if case == DEFAULT else ESSENTIAL)
    trial = Trial(asked, stage, STAGES[stage])
    return [check for scenario in listed if name in ("", scenario.name) for check in scenario.run(trial)]


@cache
def kernels(family: str, mutation: Mutation, feature: str) -> tuple[Counter[str], frozenset[str]]:
    """A step of training on packed rows with one kernel's feature switched on, in Triton's interpreter: how often each
    kernel was launched, and the features that the patch says it did not apply. Raises Refused.
    """
    interpreter.install()
    asked = subject(family, DEFAULT)
    batch = padded_right(asked.samples[-2:])
    switches = {keyword: switched in (feature, PADDING_REMOVED) for keyword, switched in KEYWORDS.items()}
    with mutant(family, mutation) as registry, interpreter.launches() as launched:
        model = asked.upstream()
        report = registry.apply_monkey_patch(family, "liger", model=model, **switches)
        model(**batch.inputs, labels=batch.labels).loss.backward()
    return launched, frozenset(report.not_applied)


def beyond_numbers(family: str, mutation: Mutation) -> Iterator[Witness]:
    """Kernels that are not launched any more, where the patch itself says that their feature is not applied. Raises
    Refused."""
    whole, _ = kernels(family, NOTHING[RMPAD.name], mutation.kernel)
    less, not_applied = kernels(family, mutation, mutation.kernel)
    if mutation.kernel in not_applied:
        yield from (Witness(family, kernel=name) for name in sorted(whole.keys() - less.keys()))
