"""Which config fields steer the code of a family, found by data flow from the reads of the config to their uses.

A field is read as `config.x`, `self.config.x`, `getattr(config, "x", default)` or `config.x["key"]`, and then followed
through locals, attributes (`self.a = config.x` in one method, `self.a` in another, `layer.a` in a third), arguments of
constructors, methods and functions of the same file, return values and plain arithmetic, up to where it decides
something: a test, a key into a table, a flag of a layer, a factor of a tensor, an argument of code that cannot be seen.
No field, class or function of a model is named here.

What the kinds mean is said at `SwitchKind`. Sizes are told apart by what they shape: a field that shapes a weight is a
size, whatever scale factors are computed from it as well, unless the code also branches on it; a field that reshapes
activations only (groups of a router, a rotary share) steers. A test that only raises or warns, or that only fills in a
value that was left out (`a if a is not None else b`), is no switch by itself. When in doubt a field steers: a
superfluous test costs seconds, a missed one hides an error.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from codegen.recognize.ast_questions import FUNCTION_NODES, FunctionNode, arguments_of, definitions, is_name, root
from codegen.recognize.config_flow import ConfigFlow, Use


class SwitchKind(Enum):
    """How a config field takes part in a family's code."""

    BRANCH = "branch"
    """Tested: `if`, conditional expression, comparison, `not`, comprehension condition."""
    DISPATCH = "dispatch"
    """Key that picks a function, class, mask or buffer from a table."""
    FLAG = "flag"
    """Turns a part of a layer on or off: `nn.Linear(..., bias=config.x)`."""
    SCALE = "scale"
    """Number in the arithmetic on activations: multipliers, soft-caps, epsilons, frequencies."""
    SHAPE = "shape"
    """Number that reshapes or slices activations and shapes no weight: groups, rotary share, chunk length."""
    OPTION = "option"
    """Argument of a function that is not in this file: top-k, activation names, windows given to the attention."""
    TIED = "tied"
    """`_tied_weights_keys` of a head: weights are shared if the field says so."""
    SIZE = "size"
    """Shape of a weight or number of layers. Arithmetic on it is part of the architecture."""
    TRAINING = "training"
    """Used under `self.training`, in dropout, or to compute a loss."""
    DEFAULT = "default"
    """Stands in for an argument of `forward` that the caller left out."""
    STORED = "stored"
    """Read and kept, but not used in this code."""

    @property
    def steers(self) -> bool:
        """Whether another value of the field can change what the model computes at inference, sizes apart."""
        return self not in (SwitchKind.SIZE, SwitchKind.TRAINING, SwitchKind.DEFAULT, SwitchKind.STORED)


@dataclass(frozen=True)
class Switch:
    """One config field in one kind of use.

    `lines` are the lines of the uses (of the reads, for STORED), sorted; `keys` the entries of a field that is a
    dictionary (`config.x["key"]`). A field of a nested config is written with a dot.
    """

    field: str
    kind: SwitchKind
    lines: tuple[int, ...]
    keys: tuple[str, ...] = ()


def config_switches(
    tree: ast.Module,
    classes: Collection[str],
    functions: Collection[str] = (),
    helpers: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> tuple[Switch, ...]:
    """The config fields that the given classes and module functions use, with evidence; sorted by field and kind.

    `classes` are followed from `__init__` and `forward` into whatever they call of each other, of base classes in this
    file, and of module functions; methods that neither reaches (weight initialisation, generation helpers) play no
    part. Attributes that start with an underscore are the framework's and not reported.

    `helpers` says which fields imported functions read of a config that they are given whole, see `config_reads`.
    Without it, a field that only a helper reads (the window of a mask builder, say) is not seen, or only as STORED.

    Raises:
        ValueError: a class or function is not defined in the module.
    """
    flow = ConfigFlow(tree, classes, functions, helpers)
    flow.run()
    uses: dict[str, dict[Use, set[int]]] = {name: {} for name in flow.read}
    for (name, use), lines in flow.uses.items():
        uses.setdefault(name, {})[use] = lines
    found = [
        Switch(name, kind, tuple(sorted(lines)), tuple(sorted(flow.keys[name])))
        for name in uses
        for kind, lines in _kinds(uses[name], flow.read[name]).items()
    ]
    tied = flow.tied()
    if tied:
        found.append(Switch("tie_word_embeddings", SwitchKind.TIED, tuple(sorted(tied))))
    return tuple(sorted(found, key=lambda switch: (switch.field, switch.kind.value)))


_PLAIN = {
    Use.BRANCH: SwitchKind.BRANCH,
    Use.DISPATCH: SwitchKind.DISPATCH,
    Use.FLAG: SwitchKind.FLAG,
    Use.SCALE: SwitchKind.SCALE,
    Use.OPTION: SwitchKind.OPTION,
    Use.VIEW: SwitchKind.SHAPE,
    Use.TRAINING: SwitchKind.TRAINING,
    Use.DEFAULT: SwitchKind.DEFAULT,
}
"""Kinds of a field that shapes no weight."""

_PART_OF_A_SIZE = (Use.WEIGHT, Use.VIEW, Use.SCALE, Use.OPTION)
"""Uses that say no more than that a field is a size, once it is known to shape a weight."""


def _kinds(uses: Mapping[Use, set[int]], read: set[int]) -> dict[SwitchKind, set[int]]:
    """The kinds of one field with their lines, from all its uses."""
    kinds: dict[SwitchKind, set[int]] = {}
    for use, lines in uses.items():
        kind = SwitchKind.SIZE if Use.WEIGHT in uses and use in _PART_OF_A_SIZE else _PLAIN[use]
        kinds[kind] = kinds.get(kind, set()) | lines
    return kinds or {SwitchKind.STORED: set(read)}


def config_reads(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """The config fields that each function of a helper module reads of its parameter `config`, sorted.

    Functions that it calls with its config are followed inside the module. Meant for upstream's mask builders; the
    result is what `config_switches` takes as `helpers`.
    """
    functions = {node.name: node for node in definitions(tree.body) if isinstance(node, FUNCTION_NODES)}
    own: dict[str, set[str]] = {}
    called: dict[str, set[str]] = {}
    for name, node in functions.items():
        if any(argument.arg == "config" for argument in arguments_of(node)):
            own[name] = set(_direct_reads(node))
            called[name] = {
                call.func.id
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in functions
            }
    for _ in own:
        for name in own:
            own[name] = own[name].union(*(own[other] for other in called[name] if other in own))
    return {name: tuple(sorted(fields)) for name, fields in own.items()}


_TEXT_CONFIG = "get_text_config"


def _direct_reads(node: FunctionNode) -> Iterator[str]:
    """Fields read of the parameter `config`, or of the text config taken from it."""
    names = {"config"}
    for part in ast.walk(node):
        call = part.value if isinstance(part, ast.Assign) else None
        taken = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == _TEXT_CONFIG
        if isinstance(part, ast.Assign) and isinstance(call, ast.Call) and taken and root(call.func) in names:
            names.update(target.id for target in part.targets if isinstance(target, ast.Name))
    for part in ast.walk(node):
        name = ""
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in names:
            name = part.attr
        elif isinstance(part, ast.Call) and is_name(part.func, "getattr") and root(part.args[0]) in names:
            name = str(part.args[1].value) if isinstance(part.args[1], ast.Constant) else ""
        if name and not name.startswith("_") and name != _TEXT_CONFIG:
            yield name
