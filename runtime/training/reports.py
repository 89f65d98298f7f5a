"""What applying patches did, and how it is taken back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from runtime.training.diagnostics import PatchError


@dataclass(frozen=True)
class Touched:
    """What happened to the modules of one upstream class.

    Attributes:
        modules: how many were swapped.
        features: what was switched on for them, sorted.
    """

    modules: int
    features: tuple[str, ...]


class PatchReport:
    """What one application of a patch did. As a context manager it takes the patch back at the end.

    Attributes:
        scope: ``instance``: a model; ``class``: whatever is built until ``undo``; ``unknown``: the patch function did
            not say what it did.
        not_applied: feature that was asked for -> why nothing was done about it.
        model_type, patch_type: under which it was registered; None when the patch function was called directly.
    """

    def __init__(
        self,
        scope: Literal["instance", "class", "unknown"],
        touched: Callable[[], dict[str, Touched]],
        not_applied: Mapping[str, str],
        take_back: Callable[[], None] | None,
    ) -> None:
        self.scope = scope
        self.not_applied = dict(not_applied)
        self.model_type: str | None = None
        self.patch_type: str | None = None
        self._touched = touched
        self._take_back = take_back

    @property
    def touched(self) -> dict[str, Touched]:
        """Upstream class -> modules and features. For scope ``class`` the modules built since, those alive."""
        return self._touched()

    @property
    def undoable(self) -> bool:
        return self._take_back is not None

    def undo(self) -> None:
        """Takes this application back; others on the same modules stay. A second call does nothing.

        Raises:
            PatchError: the patch function did not say what it did; or a module is inside ``generation``.
        """
        if self._take_back is None:
            raise PatchError(f"{self._name} cannot be undone: the patch function returned no PatchReport")
        self._take_back()

    def __enter__(self) -> "PatchReport":
        if self._take_back is None:
            raise PatchError(f"{self._name} cannot be a context: the patch function returned no PatchReport")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    @property
    def _name(self) -> str:
        return "a patch" if self.model_type is None else f"patch {self.patch_type!r} of {self.model_type!r}"

    def __str__(self) -> str:
        done = [f"{name} x{it.modules} ({', '.join(it.features)})" for name, it in self.touched.items()]
        alike: dict[str, list[str]] = {}
        for feature, reason in sorted(self.not_applied.items()):
            alike.setdefault(reason, []).append(feature)
        left = [f"{', '.join(features)} not applied: {reason}" for reason, features in alike.items()]
        return f"{self._name} [{self.scope}]: " + "; ".join([*(done or ["nothing touched"]), *left])

    __repr__ = __str__


class PatchReports(list[PatchReport]):
    """The reports of several patches, in the order of application; undone together, the last first."""

    def undo(self) -> None:
        """Takes all of them back.

        Raises:
            PatchError: one cannot be undone; those after it were.
        """
        for report in reversed(self):
            report.undo()

    def __enter__(self) -> "PatchReports":
        for report in self:
            report.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
