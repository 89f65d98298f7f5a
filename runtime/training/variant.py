"""Tables of variants: upstream's class, what replaces it, and the features for which it is needed."""

from collections.abc import Mapping

from torch import nn

from runtime.training import swapping


class Variant:
    """What replaces an upstream class, and the features for which it is needed.

    Args:
        cls: a subclass of upstream's class, or a class of the runtime that has the same attributes. Its constructor
            never runs.
        features: the class is swapped in when one of them is asked for.
    Raises:
        TypeError: no module class, or no features.
    """

    def __init__(self, cls: type[nn.Module], *features: str) -> None:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"Variant: {cls!r} is not a torch.nn.Module class")
        if not features:
            raise TypeError(f"Variant: {cls.__qualname__} has no features, it would never be swapped in")
        self.cls = cls
        self.features = frozenset(features)

    def __repr__(self) -> str:
        return f"Variant({self.cls.__module__}.{self.cls.__qualname__}, {', '.join(sorted(self.features))})"


def variants(table: Mapping[type[nn.Module], Variant]) -> dict[type[nn.Module], Variant]:
    """The table, with each variant made to pass for the upstream class that it replaces.

    Args:
        table: upstream's class -> what replaces it. A variant that is no subclass of upstream's class may stand in any
            number of tables; one that is, belongs to that class and takes its name.
    Raises:
        TypeError: a key is no module class, or a variant replaces another class already.
    """
    made = {}
    for upstream, variant in table.items():
        if not (isinstance(upstream, type) and issubclass(upstream, nn.Module)):
            raise TypeError(f"variants: {upstream!r} is not a torch.nn.Module class")
        made[upstream] = Variant(swapping.specialised(upstream, variant.cls), *variant.features)
    return made
