"""Upstream files that mean something else: mutants of a file, each with one small change of what the model computes."""

import ast
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from function_mutants import Mutants
from function_rewrites import blocks, drop_annotations
from spellings import definitions

Kind = Callable[[ast.FunctionDef], Iterator[None]]
"""Changes a function in place, once per place where the kind applies, and puts it back before the next."""


@dataclass(frozen=True)
class Mutant:
    """A file's text with one change in the definition `where`."""

    kind: str
    where: str
    text: str


def mutants(text: str, within: Collection[str]) -> Iterator[Mutant]:
    """One mutant of each kind, at a place chosen by the text of the definition among those in the definitions given."""
    tree = ast.parse(text)
    chosen = [(name, node) for name, node in definitions(tree) if name in within]
    starts = {name: min([node.lineno, *(d.lineno for d in node.decorator_list)]) for name, node in chosen}
    for _, node in chosen:
        drop_annotations(node)  # they mean nothing
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in within]
    counts: Counter[str] = Counter()
    for _, node in chosen:
        counts.update(kind for kind in _changes(node))
    lines = text.split("\n")
    wanted = {kind: zlib.crc32(f"{kind} {len(text)}".encode()) % number for kind, number in counts.items()}
    seen: Counter[str] = Counter()
    for name, node in chosen:
        for kind in _changes(node):
            if seen[kind] == wanted[kind]:
                yield Mutant(kind, name, _spliced(lines, starts[name], node))
            seen[kind] += 1
    for change in OF_CLASSES:
        made = [(node.name, new) for node in classes if (new := change(node, lines)) is not None]
        if made:
            where, new_text = made[zlib.crc32(f"{change.__name__} {len(text)}".encode()) % len(made)]
            yield Mutant(change.__name__.replace("_", " "), where, new_text)


def _changes(node: ast.FunctionDef) -> Iterator[str]:
    body = node.body
    if ast.get_docstring(node) is not None:
        node.body = body[1:] or [ast.Pass()]
    yield from (f"any {label}" for label in Mutants(node))
    for kind in KINDS:
        for _ in kind(node):
            yield kind.__name__.replace("_", " ")
    node.body = body


def _spliced(lines: list[str], first: int, node: ast.FunctionDef) -> str:
    new = [" " * node.col_offset + line for line in ast.unparse(ast.fix_missing_locations(node)).split("\n")]
    assert node.end_lineno is not None
    return "\n".join([*lines[: first - 1], *new, *lines[node.end_lineno :]])


# ------------------------------------------------------------------------------------------------- changes in place


def _with(part: ast.AST, **values: object) -> Iterator[None]:
    before = {name: getattr(part, name) for name in values}
    for name, value in values.items():
        setattr(part, name, value)
    yield
    for name, value in before.items():
        setattr(part, name, value)


def _named(node: ast.AST, *words: str) -> bool:
    """Whether a name, or an attribute's, holds one of the words."""
    label = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return any(word in label for word in words)


def _operands(node: ast.AST, operator: type[ast.operator], *words: str) -> Iterator[tuple[ast.BinOp, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.BinOp) and isinstance(part.op, operator):
            yield from ((part, side) for side in ("left", "right") if _named(getattr(part, side), *words))


def _keywords(node: ast.AST, *labels: str) -> Iterator[ast.keyword]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            yield from (keyword for keyword in part.keywords if keyword.arg in labels)


def _calls(node: ast.AST, *words: str) -> Iterator[ast.Call]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and _named(part.func, *words):
            yield part


def _swapped(first: ast.AST, second: ast.AST, name: str) -> Iterator[None]:
    one, other = getattr(first, name), getattr(second, name)
    if one != other:
        setattr(first, name, other)
        setattr(second, name, one)
        yield
        setattr(first, name, one)
        setattr(second, name, other)


def scale_dropped(node: ast.FunctionDef) -> Iterator[None]:
    for part, side in _operands(node, ast.Mult, "scal"):
        yield from _with(part, **{side: ast.Constant(1.0)})
    for keyword in _keywords(node, "scaling", "softmax_scale", "scale"):
        yield from _with(keyword, value=ast.Constant(1.0))


def mask_removed(node: ast.FunctionDef) -> Iterator[None]:
    for part, side in _operands(node, ast.Add, "mask", "bias", "alibi"):
        yield from _with(part, **{side: ast.Constant(0.0)})


def mask_not_passed_on(node: ast.FunctionDef) -> Iterator[None]:
    for keyword in _keywords(node, "attention_mask"):
        yield from _with(keyword, value=ast.Constant(None))


def norm_moved(node: ast.FunctionDef) -> Iterator[None]:
    """Swaps a norm with the statement that follows it."""
    for block in list(blocks(node)):
        for index, (one, other) in enumerate(pairwise(block)):
            if (
                isinstance(one, ast.Assign)
                and isinstance(one.value, ast.Call)
                and _named(one.value.func, "norm", "ln_")
            ):
                block[index : index + 2] = [other, one]
                yield
                block[index : index + 2] = [one, other]


def rotary_before_norm(node: ast.FunctionDef) -> Iterator[None]:
    """Moves a rotation in front of the norm of queries or keys that precedes it."""
    for block in list(blocks(node)):
        norms = [i for i, s in enumerate(block) if isinstance(s, ast.Assign) and any(_calls(s.value, "norm"))]
        turns = [i for i, s in enumerate(block) if isinstance(s, ast.Assign) and any(_calls(s.value, "rotary"))]
        if norms and turns and norms[0] < turns[0]:
            statement = block.pop(turns[0])
            block.insert(norms[0], statement)
            yield
            del block[norms[0]]
            block.insert(turns[0], statement)


def residual_dropped(node: ast.FunctionDef) -> Iterator[None]:
    for part, side in _operands(node, ast.Add, "residual"):
        yield from _with(part, **{side: ast.Constant(0.0)})


def sign_flipped(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.BinOp) and isinstance(part.op, (ast.Add, ast.Sub)):
            yield from _with(part, op=ast.Sub() if isinstance(part.op, ast.Add) else ast.Add())
        elif isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
            yield from _with(part, op=ast.UAdd())


def gate_and_up_swapped(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult):
            gates = [a for a in ast.walk(part) if _named(a, "gate")]
            ups = [a for a in ast.walk(part) if _named(a, "up_proj", "up")]
            if len(gates) == len(ups) == 1 and type(gates[0]) is type(ups[0]):
                yield from _swapped(gates[0], ups[0], "attr" if isinstance(gates[0], ast.Attribute) else "id")


def softmax_dtype_dropped(node: ast.FunctionDef) -> Iterator[None]:
    for call in _calls(node, "softmax"):
        if any(k.arg == "dtype" for k in call.keywords):
            yield from _with(call, keywords=[k for k in call.keywords if k.arg != "dtype"])


def dropout_changed(node: ast.FunctionDef) -> Iterator[None]:
    for keyword in _keywords(node, "p", "dropout"):
        yield from _with(keyword, value=ast.Constant(0.5))


def masks_swapped(node: ast.FunctionDef) -> Iterator[None]:
    other = {
        "create_causal_mask": "create_sliding_window_causal_mask",
        "create_sliding_window_causal_mask": "create_causal_mask",
        "full_attention": "sliding_attention",
        "sliding_attention": "full_attention",
    }
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in other:
            yield from _with(part, id=other[part.id])
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value in other:
            yield from _with(part, value=other[part.value])


def heads_not_repeated(node: ast.FunctionDef) -> Iterator[None]:
    for call in _calls(node, "repeat_kv", "repeat_interleave"):
        if len(call.args) > 1:
            yield from _with(call, args=[call.args[0], ast.Constant(1), *call.args[2:]])


def position_offset(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and any(_calls(part.value, "arange")):
            yield from _with(part, value=ast.BinOp(part.value, ast.Add(), ast.Constant(1)))


def default_changed(node: ast.FunctionDef) -> Iterator[None]:
    for index, default in enumerate(node.args.defaults):
        if isinstance(default, ast.Constant):
            value = default.value
            new = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else 7
            yield from _with(node.args, defaults=[*node.args.defaults[:index], ast.Constant(new),
                                                  *node.args.defaults[index + 1 :]])  # fmt: skip


def input_doubled(node: ast.FunctionDef) -> Iterator[None]:
    """Doubles the first argument of a method before anything else."""
    names = [argument.arg for argument in node.args.args]
    if names[:1] == ["self"] and len(names) > 1 and node.name != "__init__":
        name = names[1]
        value = ast.BinOp(ast.Name(name, ast.Load()), ast.Mult(), ast.Constant(2))
        yield from _with(node, body=[ast.Assign([ast.Name(name, ast.Store())], value), *node.body])


def keys_and_values_swapped(node: ast.FunctionDef) -> Iterator[None]:
    for call in _calls(node, "update"):
        if len(call.args) > 2:
            yield from _with(call, args=[call.args[1], call.args[0], *call.args[2:]])


def cos_and_sin_swapped(node: ast.FunctionDef) -> Iterator[None]:
    for call in _calls(node, "rotary", "rope"):
        given = [a for a in call.args if isinstance(a, ast.Name) and a.id in ("cos", "sin")]
        if len(given) == 2:
            yield from _swapped(given[0], given[1], "id")


def activation_changed(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id == "ACT2FN":
            yield from _with(part, slice=ast.Constant("tanh"))


def epsilon_changed(node: ast.FunctionDef) -> Iterator[None]:
    for part, side in _operands(node, ast.Add, "eps"):
        yield from _with(part, **{side: ast.Constant(0.5)})
    for keyword in _keywords(node, "eps"):
        yield from _with(keyword, value=ast.Constant(0.5))


def projection_swapped(node: ast.FunctionDef) -> Iterator[None]:
    other = {"q_proj": "k_proj", "k_proj": "v_proj", "v_proj": "k_proj", "gate_proj": "up_proj"}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr in other and isinstance(part.ctx, ast.Load):
            yield from _with(part, attr=other[part.attr])


def mean_to_sum(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "mean":
            yield from _with(part, attr="sum")


def cast_dropped(node: ast.FunctionDef) -> Iterator[None]:
    for call in _calls(node, "to"):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "to" and len(call.args) == 1:
            yield from _with(call, args=[ast.Attribute(call.func.value, "dtype", ast.Load())], keywords=[])


def weight_offset(node: ast.FunctionDef) -> Iterator[None]:
    for part, side in _operands(node, ast.Mult, "weight"):
        yield from _with(part, **{side: ast.BinOp(ast.Constant(1.0), ast.Add(), getattr(part, side))})


def first_layer_skipped(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.For) and any(_named(inner, "layers", "blocks", "h") for inner in ast.walk(part.iter)):
            part_of = ast.Subscript(ast.Call(ast.Name("list", ast.Load()), [part.iter], []),
                                    ast.Slice(ast.Constant(1), None, None), ast.Load())  # fmt: skip
            yield from _with(part, iter=part_of)


def logits_changed(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and _named(part.targets[0], "logits"):
            yield from _with(part, value=ast.BinOp(part.value, ast.Mult(), ast.Constant(0.5)))


def soft_cap_dropped(node: ast.FunctionDef) -> Iterator[None]:
    for part in ast.walk(node):
        if isinstance(part, ast.If) and any(_named(inner, "softcap", "cap") for inner in ast.walk(part.test)):
            yield from _with(part, test=ast.Constant(False))


def result_changed(node: ast.FunctionDef) -> Iterator[None]:
    """Returns the first of several results twice."""
    for part in ast.walk(node):
        if isinstance(part, ast.Return) and isinstance(part.value, ast.Tuple) and len(part.value.elts) == 2:
            yield from _with(part.value, elts=[part.value.elts[0]] * 2)


KINDS: tuple[Kind, ...] = (
    scale_dropped,
    mask_removed,
    mask_not_passed_on,
    norm_moved,
    rotary_before_norm,
    residual_dropped,
    sign_flipped,
    gate_and_up_swapped,
    softmax_dtype_dropped,
    dropout_changed,
    masks_swapped,
    heads_not_repeated,
    position_offset,
    default_changed,
    input_doubled,
    keys_and_values_swapped,
    cos_and_sin_swapped,
    activation_changed,
    epsilon_changed,
    projection_swapped,
    mean_to_sum,
    cast_dropped,
    weight_offset,
    first_layer_skipped,
    logits_changed,
    soft_cap_dropped,
    result_changed,
)


# ------------------------------------------------------------------------------------------------ changes of classes


def base_swapped(node: ast.ClassDef, lines: list[str]) -> str | None:
    """Puts `nn.Module` in the place of the first base."""
    if not node.bases or ast.unparse(node.bases[0]) == "nn.Module":
        return None
    return _replaced(lines, node.bases[0], "nn.Module")


def class_attribute_changed(node: ast.ClassDef, lines: list[str]) -> str | None:
    for member in node.body:
        if isinstance(member, ast.Assign) and member.lineno == member.end_lineno:
            return _replaced(lines, member.value, "None" if ast.unparse(member.value) != "None" else "0")
    return None


def _replaced(lines: list[str], part: ast.expr, new: str) -> str:
    line = lines[part.lineno - 1].encode()
    changed = (line[: part.col_offset] + new.encode() + line[part.end_col_offset :]).decode()
    return "\n".join([*lines[: part.lineno - 1], changed, *lines[part.lineno :]])


OF_CLASSES: tuple[Callable[[ast.ClassDef, list[str]], str | None], ...] = (base_swapped, class_attribute_changed)
