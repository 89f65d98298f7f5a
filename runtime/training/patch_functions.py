"""Functions that apply a patch, as the registry keeps them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Patch = Callable[..., Any]


@dataclass(frozen=True)
class Registered:
    """A patch function and what its signature takes.

    Attributes:
        function: the patch.
        names: parameters that can be passed by keyword.
        takes_any: it has ``**kwargs``.
    """

    function: Patch
    names: frozenset[str]
    takes_any: bool

    @classmethod
    def of(cls, function: Patch) -> "Registered":
        """Reads the signature.

        Raises:
            TypeError: not callable.
        """
        if not callable(function):
            raise TypeError(f"{function!r} is not callable and cannot be a patch")
        parameters = inspect.signature(function).parameters.values()
        named = {it.name for it in parameters if it.kind in (it.POSITIONAL_OR_KEYWORD, it.KEYWORD_ONLY)}
        return cls(function, frozenset(named), any(it.kind is it.VAR_KEYWORD for it in parameters))

    @property
    def name(self) -> str:
        """Where the function is from: the same for a second import of its module."""
        return f"{getattr(self.function, '__module__', '')}.{getattr(self.function, '__qualname__', self.function)}"

    def takes(self, keyword: str) -> bool:
        """Whether the keyword may be passed."""
        return self.takes_any or keyword in self.names
