"""Stand-ins and counters for the tests of packed input."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Patched(nn.Module):
    """A module whose feature `rmpad` is on, as a patched model's is."""

    regraft_features = frozenset({"rmpad"})

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@contextmanager
def counted_transfers() -> Iterator[list[str]]:
    """The names of the calls that would wait for a device, as they are made."""
    made: list[str] = []
    names = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
    originals = {name: getattr(Tensor, name) for name in names}
    inherited = {name for name in names if name not in Tensor.__dict__}

    def counting(name: str) -> Any:
        def counted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return originals[name](self, *args, **kwargs)

        return counted

    for name in names:
        setattr(Tensor, name, counting(name))
    try:
        yield made
    finally:
        for name in names:
            if name in inherited:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, originals[name])
