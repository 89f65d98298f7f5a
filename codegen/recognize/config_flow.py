"""Where the values of config fields flow in the classes of one file, and what is done with them.

An abstract run: every reachable method is executed on values that are sets of tokens (a config field, the config, an
object, class or function of this file) instead of tensors, until nothing new is found. What the uses amount to is
decided in `codegen.recognize.switches`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from codegen.recognize.ast_questions import (
    FUNCTION_NODES,
    MESSAGES,
    FunctionNode,
    arguments_of,
    definitions,
    dotted,
    fills_in,
    is_name,
    only_complains,
    root,
    targets,
    training_only,
)
from codegen.recognize.torch_calls import Meaning, is_shaping, keeps_value, layer_argument


class Use(Enum):
    """What is done with a value that comes from the config."""

    BRANCH = auto()  # tested
    DISPATCH = auto()  # key of a table
    FLAG = auto()  # switches a part of a layer
    SCALE = auto()  # number in arithmetic with something else
    OPTION = auto()  # argument of code that cannot be seen
    WEIGHT = auto()  # size in the shape of a weight, number of layers
    VIEW = auto()  # size, offset or dimension of an activation
    TRAINING = auto()  # anything of that, at training only
    DEFAULT = auto()  # bound to a parameter of forward


class _Read(NamedTuple):
    """The value of a config field, or something computed from it alone."""

    field: str
    key: str = ""


class _Config(NamedTuple):
    """The config itself, or a nested one."""

    prefix: str = ""


class _Instance(NamedTuple):
    """An object of a class of this file."""

    of: str


class _Class(NamedTuple):
    """A class of this file, called to make an instance."""

    name: str


class _Function(NamedTuple):
    """A function of this file (`owner` empty) or a bound method of a class."""

    owner: str
    name: str


class _Helper(NamedTuple):
    """An imported function of which it is known what it reads of a config."""

    name: str


_Token: TypeAlias = _Read | _Config | _Instance | _Class | _Function | _Helper
_Value: TypeAlias = frozenset[_Token]
_Env: TypeAlias = dict[str, _Value]
_Unit: TypeAlias = tuple[str, str]  # class ("" for a module function) and function

_NOTHING: _Value = frozenset()
_INIT, _FORWARD = "__init__", "forward"
_PLAIN_BUILTINS = frozenset(
    {
        "abs", "all", "any", "bool", "dict", "enumerate", "float", "frozenset", "int", "iter", "len", "list", "max",
        "min", "next", "pow", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
    }
)  # fmt: skip
"""Builtins whose result is computed from their arguments alone."""
_DEEPEST = 2
"""How deep configs are nested at most."""
_VALUE_MODULES = frozenset({"copy", "math", "np", "numpy"})
"""Modules whose functions compute from their arguments alone."""
_LOOKUPS = frozenset({"get", "pop"})
_LAYER_MODULES = frozenset({"nn", "torch.nn"})


class ConfigFlow:
    """Runs every reachable method again and again on abstract values; the round that finds nothing new counts."""

    def __init__(
        self,
        tree: ast.Module,
        classes: Collection[str],
        functions: Collection[str],
        helpers: Mapping[str, Collection[str]],
    ) -> None:
        self.helpers = helpers
        self.all_classes = {node.name: node for node in definitions(tree.body) if isinstance(node, ast.ClassDef)}
        self.all_functions = {node.name: node for node in definitions(tree.body) if isinstance(node, FUNCTION_NODES)}
        missing = sorted({*classes} - {*self.all_classes}) + sorted({*functions} - {*self.all_functions})
        if missing:
            raise ValueError(f"not defined in the module: {', '.join(missing)}")
        self.classes = sorted(classes)
        self.methods = {name: self._methods_of(name) for name in self.classes}
        self.tree = tree
        self.owners: dict[str, list[str]] = defaultdict(list)  # method -> classes, constructors and forward apart
        for name, methods in self.methods.items():
            for method in methods:
                if method not in (_INIT, _FORWARD):
                    self.owners[method].append(name)
        self.mentions: dict[FunctionNode, tuple[list[str], list[str], list[str]]] = {}

        self.globals: _Env = {}
        self.attributes: dict[tuple[str, str], _Value] = defaultdict(frozenset)
        self.parameters: dict[tuple[_Unit, str], _Value] = defaultdict(frozenset)
        self.returns: dict[_Unit, _Value] = defaultdict(frozenset)
        self.changed = True
        self.uses: dict[tuple[str, Use], set[int]] = defaultdict(set)
        self.keys: dict[str, set[str]] = defaultdict(set)
        self.read: dict[str, set[int]] = defaultdict(set)

        # Where we are.
        self.unit: _Unit = ("", "")
        self.node: FunctionNode | None = None
        self.at_inference = True  # in code that forward reaches: names without a known value may be tensors
        self.testing = False
        self.counting = False  # in a test, a shape or a slice: all operands are numbers
        self.training = False
        self.sizing_weight = False

        roots = [("", name) for name in functions]
        roots += [
            (name, method) for name in self.classes for method in (_INIT, _FORWARD) if method in self.methods[name]
        ]
        self.units = self._reachable(roots)
        self.forward_units = self._reachable([unit for unit in roots if unit[1] != _INIT])

    def _methods_of(self, name: str) -> dict[str, FunctionNode]:
        """Methods of a class, those of its base classes in this file included."""
        methods: dict[str, FunctionNode] = {}
        for ancestor in reversed(list(self._ancestors(name))):
            for statement in ancestor.body:
                if isinstance(statement, FUNCTION_NODES):
                    methods[statement.name] = statement
        return methods

    def _ancestors(self, name: str) -> Iterator[ast.ClassDef]:
        node = self.all_classes.get(name)
        if node is not None:
            yield node
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id != name:
                    yield from self._ancestors(base.id)

    def _layer_of(self, name: str) -> str | None:
        """The layer of torch.nn that a class of this file is, if it has no constructor of its own before that."""
        for node in self._ancestors(name):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and dotted(base.value) in _LAYER_MODULES and base.attr != "Module":
                    return base.attr
        return None

    def _node(self, unit: _Unit) -> FunctionNode | None:
        owner, name = unit
        return self.methods.get(owner, {}).get(name) if owner else self.all_functions.get(name)

    def _reachable(self, roots: Iterable[_Unit]) -> list[_Unit]:
        """Methods and functions that the roots mention, by name: `self.m`, `other.m`, `f`."""
        found: dict[_Unit, None] = {}
        todo = list(roots)
        while todo:
            unit = todo.pop(0)
            node = self._node(unit)
            if unit in found or node is None:
                continue
            found[unit] = None
            functions, own, others = self._mentions(node)
            todo += [("", name) for name in functions]
            todo += [(unit[0], name) for name in own]
            todo += [(owner, name) for name in others for owner in self.owners.get(name, ())]
        return list(found)

    def _mentions(self, node: FunctionNode) -> tuple[list[str], list[str], list[str]]:
        """Module functions, methods as `self.m` and methods as `other.m` that a function names."""
        if node not in self.mentions:
            functions: dict[str, None] = {}
            own: dict[str, None] = {}
            others: dict[str, None] = {}
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and part.id in self.all_functions:
                    functions[part.id] = None
                elif isinstance(part, ast.Attribute) and part.attr in self.owners:
                    (own if is_name(part.value, "self") else others)[part.attr] = None
            self.mentions[node] = list(functions), list(own), list(others)
        return self.mentions[node]

    # -- running

    def run(self) -> None:
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign):
                self._statement(statement, self.globals)
        while self.changed:
            self.changed = False
            self.uses.clear()
            self.keys.clear()
            self.read.clear()
            self._all_units()

    def _all_units(self) -> None:
        for unit in self.units:
            node = self._node(unit)
            if node is None:
                continue
            self.unit, self.node = unit, node
            self.at_inference = unit in self.forward_units
            env: _Env = {}
            static = any(is_name(decorator, "staticmethod") for decorator in node.decorator_list)
            for index, argument in enumerate(arguments_of(node)):
                if unit[0] and index == 0 and not static:
                    env[argument.arg] = frozenset({_Instance(unit[0])})
                else:
                    env[argument.arg] = self.parameters[unit, argument.arg]
                    if _is_config(argument):
                        env[argument.arg] |= {_Config()}
            self._block(node.body, env)

    def _add(self, table: dict[tuple[str, str], _Value], key: tuple[str, str], value: _Value) -> None:
        if not value <= table[key]:
            table[key] |= value
            self.changed = True

    def _sink(self, value: _Value, sink: Use, node: ast.AST) -> None:
        if self.training:
            sink = Use.TRAINING
        for token in value:
            if isinstance(token, _Read):
                self.uses[token.field, sink].add(getattr(node, "lineno", 0))
                if token.key:
                    self.keys[token.field].add(token.key)

    @contextmanager
    def _with(self, **flags: bool) -> Iterator[None]:
        """Sets some of `testing`, `counting`, `training`, `sizing_weight` for a while."""
        before = {name: getattr(self, name) for name in flags}
        vars(self).update(flags)
        yield
        vars(self).update(before)

    def tied(self) -> set[int]:
        """The lines on which a class says which of its weights are shared."""
        return {
            statement.lineno
            for name in self.classes
            for ancestor in self._ancestors(name)
            for statement in ancestor.body
            if isinstance(statement, (ast.Assign, ast.AnnAssign))
            and isinstance(statement.value, (ast.Dict, ast.List))
            and (statement.value.keys if isinstance(statement.value, ast.Dict) else statement.value.elts)
            and any(isinstance(t, ast.Name) and t.id == "_tied_weights_keys" for t in targets(statement))
        }

    # -- statements

    def _block(self, statements: Sequence[ast.stmt], env: _Env) -> None:
        for statement in statements:
            self._statement(statement, env)

    def _statement(self, node: ast.stmt, env: _Env) -> None:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            if node.value is not None:
                value = self._eval(node.value, env)
                for target in targets(node):
                    self._assign(target, value, env, node.value)
        elif isinstance(node, ast.AugAssign):
            value = self._combine([node.target, node.value], env, node)
            self._assign(node.target, value, env, node.value)
        elif isinstance(node, ast.If):
            self._if(node, env)
        elif isinstance(node, ast.While):
            self._test(node.test, env)
            self._loop(node.body, env)
            self._block(node.orelse, env)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._bind_loop(node.target, node.iter, env)
            self._loop(node.body, env)
            self._block(node.orelse, env)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                value = self._eval(item.context_expr, env)
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, value, env, item.context_expr)
            self._block(node.body, env)
        elif isinstance(node, (ast.Try, ast.TryStar)):
            for block in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                self._block(block, env)
        elif isinstance(node, ast.Match):
            self._test(node.subject, env)
            for case in node.cases:
                branch = dict(env)
                self._block(case.body, branch)
                _merge(env, branch)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                value = self._eval(node.value, env)
                if not value <= self.returns[self.unit]:
                    self.returns[self.unit] |= value
                    self.changed = True
        elif isinstance(node, ast.Expr):
            self._eval(node.value, env)
        elif isinstance(node, FUNCTION_NODES):
            # A nested function: its code runs with what is known here, its own parameters are unknown.
            inner = dict(env)
            inner.update({argument.arg: _NOTHING for argument in node.args.args})
            self._block(node.body, inner)

    def _loop(self, body: Sequence[ast.stmt], env: _Env) -> None:
        for _ in range(2):  # the second time with what the first has bound
            branch = dict(env)
            self._block(body, branch)
            _merge(env, branch)

    def _if(self, node: ast.If, env: _Env) -> None:
        if not only_complains(node) and not fills_in(node.test, node.body, node.orelse):
            self._test(node.test, env)
        when = training_only(node.test)
        branches = []
        for block, training in ((node.body, when is True), (node.orelse, when is False)):
            branch = dict(env)
            with self._with(training=self.training or training):
                self._block(block, branch)
            branches.append(branch)
        env.clear()
        for branch in branches:
            _merge(env, branch)

    def _assign(self, target: ast.expr, value: _Value, env: _Env, source: ast.expr) -> None:
        if isinstance(target, ast.Name):
            node = self._node(self.unit)
            if self.unit[1] == _FORWARD and node is not None and target.id in {a.arg for a in node.args.args}:
                # An argument of the caller, which the config only stands in for.
                self._sink(value, Use.DEFAULT, source)
                value = frozenset(token for token in value if not isinstance(token, _Read))
            env[target.id] = value
        elif isinstance(target, ast.Attribute):
            for token in self._eval(target.value, env):
                if isinstance(token, _Instance):
                    self._add(self.attributes, (token.of, target.attr), value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            elements = source.elts if isinstance(source, (ast.Tuple, ast.List)) else []
            if len(elements) == len(target.elts):
                for part, element in zip(target.elts, elements, strict=True):
                    self._assign(part, self._eval(element, env), env, element)
            else:
                for part in target.elts:
                    self._assign(part, value, env, source)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value, env, source)
        elif isinstance(target, ast.Subscript):
            self._eval(target.slice, env)
            if isinstance(target.value, ast.Name):
                env[target.value.id] = env.get(target.value.id, _NOTHING) | value
            elif isinstance(target.value, ast.Attribute):
                self._assign(target.value, value, env, source)

    def _bind_loop(self, target: ast.expr, iterable: ast.expr, env: _Env) -> None:
        value = self._eval(iterable, env)
        counted = (
            isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) and iterable.func.id == "enumerate"
        )
        if counted and isinstance(target, ast.Tuple) and len(target.elts) == 2:
            self._assign(target.elts[0], _NOTHING, env, iterable)
            self._assign(target.elts[1], value, env, iterable)
        else:
            self._assign(target, value, env, iterable)

    # -- expressions

    def _test(self, node: ast.expr, env: _Env) -> None:
        """A truth test: every field in it decides."""
        with self._with(testing=True, counting=True, training=self.training or training_only(node) is not None):
            value = self._eval(node, env)
            self._sink(value, Use.BRANCH, node)

    def _eval(self, node: ast.expr, env: _Env) -> _Value:
        if isinstance(node, ast.Constant):
            return _NOTHING
        if isinstance(node, ast.Name):
            return self._name(node.id, env)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, env)
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.Subscript):
            return self._subscript(node, env)
        if isinstance(node, ast.BinOp):
            return self._combine([node.left, node.right], env, node)
        if isinstance(node, ast.Compare):
            return self._compare(node, env)
        if isinstance(node, ast.UnaryOp):
            value = self._eval(node.operand, env)
            if isinstance(node.op, ast.Not) and not self.testing:
                self._sink(value, Use.BRANCH, node)
            return value
        if isinstance(node, ast.BoolOp):
            values = [self._eval(part, env) for part in node.values]
            if isinstance(node.op, ast.And) and not self.testing:
                self._sink(frozenset().union(*values[:-1]), Use.BRANCH, node)
            return frozenset().union(*values)
        if isinstance(node, ast.IfExp):
            return self._conditional(node, env)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self._comprehension(node, env)
        if isinstance(node, ast.NamedExpr):
            value = self._eval(node.value, env)
            self._assign(node.target, value, env, node.value)
            return value
        if isinstance(node, ast.Lambda):
            return self._eval(node.body, {**env, **{argument.arg: _NOTHING for argument in node.args.args}})
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return frozenset().union(*(self._eval(part, env) for part in parts))

    def _name(self, name: str, env: _Env) -> _Value:
        if name in env:
            return env[name]
        if name in self.globals:
            return self.globals[name]
        if name in self.all_functions:
            return frozenset({_Function("", name)})
        if name in self.methods:
            return frozenset({_Class(name)})
        return frozenset({_Helper(name)}) if name in self.helpers else _NOTHING

    def _attribute(self, node: ast.Attribute, env: _Env) -> _Value:
        if dotted(node) is not None and root(node) not in env:
            return _NOTHING  # something of a module
        return self._get(self._eval(node.value, env), node.attr, node)

    def _get(self, base: _Value, name: str, node: ast.AST) -> _Value:
        """`base.name`, for every thing that base may be."""
        if name == "config" and not any(isinstance(token, _Config) for token in base):
            return frozenset({_Config()})
        found: set[_Token] = set()
        known = False
        for token in base:
            if isinstance(token, _Config):
                known = True
                if name.endswith("_config"):
                    # Deeper nesting than upstream has would only come from recursion, without an end.
                    deeper = token.prefix.count(".") < _DEEPEST
                    found.add(_Config(f"{token.prefix}{name}.") if deeper else token)
                elif not name.startswith("_"):
                    found.add(self._read_field(token.prefix + name, node))
            elif isinstance(token, _Instance):
                known = True
                method = self.methods.get(token.of, {}).get(name)
                if method is None:
                    found |= self.attributes[token.of, name]
                elif any(
                    isinstance(decorator, ast.Name) and decorator.id == "property"
                    for decorator in method.decorator_list
                ):
                    found |= self.returns[token.of, name]
                else:
                    found.add(_Function(token.of, name))
            elif isinstance(token, _Read):
                known = True
                found.add(token)
            elif isinstance(token, _Class) and name in self.methods[token.name]:
                known = True
                found.add(_Function(token.name, name))
        if not known:
            # An object that nothing is known of, e.g. an element of `self.layers`: whoever has such an attribute.
            for other in self.classes:
                found |= self.attributes[other, name]
        return frozenset(found)

    def _read_field(self, name: str, node: ast.AST) -> _Read:
        self.read[name].add(getattr(node, "lineno", 0))
        return _Read(name)

    def _subscript(self, node: ast.Subscript, env: _Env) -> _Value:
        base = self._eval(node.value, env)
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return _entry(base, node.slice.value)
        for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            with self._with(counting=True):
                value = self._eval(part, env)
            self._sink(value, Use.VIEW if isinstance(part, ast.Slice) else Use.DISPATCH, node)
        return base

    def _combine(self, operands: Sequence[ast.expr], env: _Env, node: ast.AST) -> _Value:
        """Arithmetic: of numbers from the config it stays one, with an activation the config scales it."""
        values = [self._eval(operand, env) for operand in operands]
        together = frozenset(token for value in values for token in value if isinstance(token, _Read))
        if self.counting or not self.at_inference or self._are_numbers(operands, values):
            return together
        self._sink(together, Use.SCALE, node)
        return _NOTHING

    def _are_numbers(self, operands: Sequence[ast.expr], values: Sequence[_Value]) -> bool:
        return all(
            any(isinstance(token, _Read) for token in value) or _is_number(operand)
            for operand, value in zip(operands, values, strict=True)
        )

    def _compare(self, node: ast.Compare, env: _Env) -> _Value:
        operands = [node.left, *node.comparators]
        values = [self._eval(operand, env) for operand in operands]
        together = frozenset(token for value in values for token in value if isinstance(token, _Read))
        self._sink(together, Use.BRANCH, node)
        return together if not self.at_inference or self._are_numbers(operands, values) else _NOTHING

    def _conditional(self, node: ast.IfExp, env: _Env) -> _Value:
        if not fills_in(node.test, [node.body], [node.orelse]):
            self._test(node.test, env)
        when = training_only(node.test)
        found: _Value = _NOTHING
        for part, training in ((node.body, when is True), (node.orelse, when is False)):
            with self._with(training=self.training or training):
                value = self._eval(part, env)
                if training:
                    self._sink(value, Use.TRAINING, node)
                else:
                    found |= value
        return found

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, env: _Env) -> _Value:
        inner = dict(env)
        for clause in node.generators:
            self._bind_loop(clause.target, clause.iter, inner)
            for condition in clause.ifs:
                self._test(condition, inner)
        if isinstance(node, ast.DictComp):
            return self._eval(node.key, inner) | self._eval(node.value, inner)
        return self._eval(node.elt, inner)

    # -- calls

    def _call(self, node: ast.Call, env: _Env) -> _Value:
        if any(keyword.arg == "training" for keyword in node.keywords) and not self._is_here(node.func):
            with self._with(training=True):
                self._arguments(node, env, Use.TRAINING)
            return _NOTHING
        if isinstance(node.func, ast.Name) and node.func.id not in env:
            known = self._builtin(node, node.func.id, env)
            if known is not None:
                return known
        if isinstance(node.func, ast.Attribute):
            known = self._method(node, node.func, env)
            if known is not None:
                return known
        return self._apply(self._eval(node.func, env), node, env)

    def _is_here(self, function: ast.expr) -> bool:
        return isinstance(function, ast.Name) and (function.id in self.all_functions or function.id in self.all_classes)

    def _builtin(self, node: ast.Call, name: str, env: _Env) -> _Value | None:
        if name in MESSAGES or name in ("isinstance", "hasattr", "type", "super", "id"):
            return _NOTHING
        if name == "range":
            self._arguments(node, env, Use.VIEW if self.at_inference else Use.WEIGHT)
            return _NOTHING
        if name == "getattr" and len(node.args) > 1:
            base = self._eval(node.args[0], env)
            default = self._eval(node.args[2], env) if len(node.args) > 2 else _NOTHING
            if isinstance(node.args[1], ast.Constant):
                return self._get(base, str(node.args[1].value), node) | default
            self._sink(self._eval(node.args[1], env), Use.DISPATCH, node)
            return default
        if name in _PLAIN_BUILTINS:
            return self._values(node, env)
        return None

    def _method(self, node: ast.Call, function: ast.Attribute, env: _Env) -> _Value | None:
        """`something.name(...)`, as far as `name` or the thing is known from elsewhere; None: like any other call."""
        name, module = function.attr, dotted(function.value)
        if isinstance(function.value, ast.Call) and is_name(function.value.func, "super"):
            return self._super(node, name, env)
        if module is not None and root(function) not in env and root(function) not in self.globals:
            if module in MESSAGES:
                return _NOTHING
            if module in _VALUE_MODULES or keeps_value(name):
                return self._values(node, env)
            if module in _LAYER_MODULES:
                return self._layer(node, name, env)
            if module not in self.methods and name not in _LOOKUPS:
                return self._arguments(node, env, self._shape_use() if is_shaping(name) else Use.OPTION)
        base = self._eval(function.value, env)
        if any(isinstance(token, _Config) for token in base):
            return frozenset(token for token in base if isinstance(token, _Config))
        if name in _LOOKUPS and node.args and not any(isinstance(token, _Instance) for token in base):
            key, *rest = node.args
            default = frozenset().union(*(self._eval(argument, env) for argument in rest))
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                return _entry(base, key.value) | default
            self._sink(self._eval(key, env), Use.DISPATCH, node)
            return base | default
        if name == "register_buffer" and len(node.args) > 1 and any(isinstance(token, _Instance) for token in base):
            self._buffer(node, base, env)
            return _NOTHING
        if any(isinstance(token, (_Instance, _Class)) for token in base):
            return None
        if any(isinstance(token, _Read) for token in base):
            # A method of a value that comes from the config: still that value.
            self._arguments(node, env, self._shape_use() if is_shaping(name) else Use.OPTION)
            return base
        if name in self.owners:
            return self._apply(frozenset(_Function(owner, name) for owner in self.owners[name]), node, env)
        return self._arguments(node, env, self._shape_use() if is_shaping(name) else Use.OPTION)

    def _shape_use(self) -> Use:
        return Use.WEIGHT if self.sizing_weight else Use.VIEW

    def _buffer(self, node: ast.Call, base: _Value, env: _Env) -> None:
        value = self._eval(node.args[1], env)
        if isinstance(node.args[0], ast.Constant):
            for token in base:
                if isinstance(token, _Instance):
                    self._add(self.attributes, (token.of, str(node.args[0].value)), value)
        else:
            self._eval(node.args[0], env)
            self._sink(value, Use.SCALE, node)

    def _super(self, node: ast.Call, name: str, env: _Env) -> _Value:
        """`super().name(...)`: the base class in this file, or a layer of torch.nn."""
        owner = self.unit[0]
        ancestors = list(self._ancestors(owner))
        here = next((index for index, ancestor in enumerate(ancestors) if self.node in ancestor.body), 0)
        for ancestor in ancestors[here + 1 :]:
            for statement in ancestor.body:
                if isinstance(statement, FUNCTION_NODES) and statement.name == name:
                    # Run in place with the arguments bound: an overridden method has no unit of its own.
                    return self._inline(statement, node, env)
        layer = self._layer_of(owner)
        if name == _INIT and layer is not None:
            return self._layer(node, layer, env)
        self._arguments(node, env, Use.OPTION)
        return _NOTHING

    def _inline(self, function: FunctionNode, node: ast.Call, env: _Env) -> _Value:
        inner: _Env = {function.args.args[0].arg: frozenset({_Instance(self.unit[0])})} if function.args.args else {}
        names = [argument.arg for argument in function.args.args[1:]]
        for argument in (*function.args.args[1:], *function.args.kwonlyargs):
            inner[argument.arg] = frozenset({_Config()}) if _is_config(argument) else _NOTHING
        for index, value in enumerate(node.args):
            if index < len(names):
                inner[names[index]] = self._eval(value, env)
        for keyword in node.keywords:
            if keyword.arg in inner:
                inner[keyword.arg] = self._eval(keyword.value, env)
        calling, self.node = self.node, function
        self._block(function.body, inner)
        self.node = calling
        return _NOTHING

    def _layer(self, node: ast.Call, layer: str, env: _Env) -> _Value:
        """A constructor of torch.nn."""
        sinks: Mapping[Meaning, Use] = {
            Meaning.SIZE: Use.WEIGHT,
            Meaning.FLAG: Use.FLAG,
            Meaning.NUMBER: Use.SCALE,
            Meaning.TRAINING: Use.TRAINING,
            Meaning.OTHER: Use.OPTION,
        }
        objects: set[_Token] = set()
        with self._with(sizing_weight=True):
            for position, argument in enumerate(node.args):
                value = self._eval(argument, env)
                objects |= {token for token in value if not isinstance(token, (_Read, _Config))}
                self._sink(value, sinks[layer_argument(layer, position, None)], argument)
            for keyword in node.keywords:
                value = self._eval(keyword.value, env)
                self._sink(value, sinks[layer_argument(layer, None, keyword.arg)], keyword.value)
        return frozenset(objects)

    def _apply(self, function: _Value, node: ast.Call, env: _Env) -> _Value:
        """A call of whatever of this file `function` may be, or of something that cannot be seen."""
        result: _Value = _NOTHING
        known = False
        for token in sorted(function, key=repr):
            if isinstance(token, _Function):
                known = True
                unit = (token.owner, token.name)
                self._bind(unit, node, env)
                result |= self.returns[unit]
            elif isinstance(token, _Class):
                known = True
                result |= {_Instance(token.name)}
                if _INIT in self.methods[token.name]:
                    self._bind((token.name, _INIT), node, env)
                else:
                    layer = self._layer_of(token.name)
                    if layer is not None:
                        self._layer(node, layer, env)
            elif isinstance(token, _Instance) and _FORWARD in self.methods.get(token.of, {}):
                known = True
                self._bind((token.of, _FORWARD), node, env)
                result |= {found for found in self.returns[token.of, _FORWARD] if isinstance(found, _Read)}
            elif isinstance(token, _Helper) and any(isinstance(value, _Config) for value in self._values(node, env)):
                fields = frozenset(_Read(name) for name in self.helpers[token.name])
                self._sink(fields, Use.OPTION, node)
        if known:
            return result
        return self._arguments(node, env, Use.OPTION)

    def _bind(self, unit: _Unit, node: ast.Call, env: _Env) -> None:
        """Hands the arguments of a call to the parameters of a function of this file."""
        function = self._node(unit)
        if function is None:
            return
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        static = any(is_name(decorator, "staticmethod") for decorator in function.decorator_list)
        if unit[0] and not static:
            names = names[1:]
        known = {*names, *(argument.arg for argument in function.args.kwonlyargs)}
        for index, argument in enumerate(node.args):
            value = self._eval(argument, env)
            if index < len(names) and not isinstance(argument, ast.Starred):
                self._give(unit, names[index], value)
            else:
                self._sink(value, Use.OPTION, argument)
        for keyword in node.keywords:
            value = self._eval(keyword.value, env)
            if keyword.arg in known:
                self._give(unit, str(keyword.arg), value)
            else:
                self._sink(value, Use.OPTION, keyword.value)

    def _give(self, unit: _Unit, name: str, value: _Value) -> None:
        if not value <= self.parameters[unit, name]:
            self.parameters[unit, name] |= value
            self.changed = True

    def _arguments(self, node: ast.Call, env: _Env, sink: Use) -> _Value:
        """Evaluates the arguments of a call that cannot be seen. Returns the functions and classes of this file among
        them, which it may give back (a default)."""
        found: set[_Token] = set()
        with self._with(counting=self.counting or sink in (Use.WEIGHT, Use.VIEW)):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                value = self._eval(argument, env)
                self._sink(value, sink, argument)
                found |= {token for token in value if isinstance(token, (_Function, _Class))}
        return frozenset(found)

    def _values(self, node: ast.Call, env: _Env) -> _Value:
        return frozenset().union(
            *(self._eval(argument, env) for argument in (*node.args, *(keyword.value for keyword in node.keywords)))
        )


def _merge(env: _Env, branch: _Env) -> None:
    for name, value in branch.items():
        env[name] = env.get(name, _NOTHING) | value


def _is_config(argument: ast.arg) -> bool:
    annotation = argument.annotation
    if isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    name = annotation.id if isinstance(annotation, ast.Name) else ""
    return argument.arg == "config" or name.endswith("Config")


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is made of literals, so that it cannot be an activation."""
    return all(
        isinstance(part, (ast.Constant, ast.UnaryOp, ast.BinOp, ast.unaryop, ast.operator)) for part in ast.walk(node)
    )


def _entry(base: _Value, key: str) -> _Value:
    """`base["key"]`."""
    return frozenset(_Read(token.field, token.key or key) if isinstance(token, _Read) else token for token in base)
