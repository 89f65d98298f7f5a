"""One modeling file of upstream: its classes, functions and imports, what they build, and where things stand in it."""

from __future__ import annotations

import ast as python_ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from codegen.definitions import Definitions, Text, Values, first_line
from codegen.diagnostics import Refused, Span, damaged
from codegen.source import PACKAGE
from codegen.syntax import assignment, dotted, find, self_attribute, truth, walk

CROSS_FLAG = "is_cross_attention"


@dataclass(frozen=True)
class Import:
    """A module-level name that upstream imports: ``from module import original as name`` or ``import module``."""

    module: str
    original: str | None
    name: str


@dataclass(frozen=True)
class Method:
    """A method and the class of this file that defines it (itself or a base)."""

    owner: str
    node: cst.FunctionDef

    @property
    def name(self) -> str:
        return self.node.name.value


class UpstreamModule:
    """A parsed modeling file. ``path`` is relative to the package; positions are computed only when asked for."""

    def __init__(self, path: str, text: str, package: str = PACKAGE) -> None:
        self.path = path
        self.text = text
        self.package = package
        try:
            self.ast = python_ast.parse(text)
        except SyntaxError as error:
            where = Span(path, error.lineno or 0, error.offset or 1)
            raise Refused(damaged(where, "Python source", f"a syntax error: {error.msg}")) from None
        except ValueError as error:  # a NUL byte
            raise Refused(damaged(Span(path), "Python source", str(error))) from None
        source = Text(path, text)
        self.classes = Definitions(source, cst.ClassDef)
        self.functions = Definitions(source, cst.FunctionDef)
        self.constants = Values(source)
        self.imports: dict[str, Import] = {}
        self._submodules: dict[str, Mapping[str, tuple[str, ...]]] = {}
        self._positions: dict[str, Mapping[cst.CSTNode, CodeRange]] = {}
        self._reachable: dict[tuple[str, str], tuple[Method, ...]] = {}
        self._bases: dict[str, tuple[str, ...]] = {}
        self._index(self.ast.body, len(source.lines) + 1)

    @cached_property
    def tree(self) -> cst.Module:
        """The whole file. The compiler itself parses only the definitions that it looks at."""
        return cst.parse_module(self.text)

    @property
    def header(self) -> tuple[str, ...]:
        """The comment lines that the file begins with."""
        lines = (line.strip() for line in self.text.splitlines())
        return tuple(line for line in takewhile(lambda line: not line or line.startswith("#"), lines) if line)

    @property
    def name(self) -> str:
        """Dotted module name, ``transformers.models.llama.modeling_llama``."""
        return f"{self.package}.{self.path.removesuffix('.py').replace('/', '.')}"

    @property
    def is_upstream(self) -> bool:
        """Whether the file is one of upstream's, not of a package of the user's."""
        return self.package == PACKAGE

    @property
    def stem(self) -> str:
        """``modeling_llama``."""
        return self.path.rsplit("/", 1)[-1].removesuffix(".py")

    def _index(self, body: Sequence[python_ast.stmt], end: int) -> None:
        """Notes what a block of the module's level binds; ``end`` is the line after the block."""
        ends = [first_line(node) for node in body[1:]] + [end]
        for node, after in zip(body, ends, strict=False):  # an empty file has an end alone
            if isinstance(node, python_ast.ClassDef):
                self.classes.add(node, after)
                self._bases[node.name] = tuple(python_ast.unparse(base) for base in node.bases)
            elif isinstance(node, python_ast.FunctionDef):
                self.functions.add(node, after)
            elif isinstance(node, python_ast.If):
                self._index(node.body, (node.body[-1].end_lineno or after - 1) + 1)
            elif isinstance(node, python_ast.Import | python_ast.ImportFrom):
                self._index_import(node)
            else:
                self.constants.add(node)

    def _index_import(self, node: python_ast.Import | python_ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, python_ast.ImportFrom):
                if alias.name != "*":
                    name = alias.asname or alias.name
                    self.imports[name] = Import(self._absolute(node), alias.name, name)
            else:
                name = alias.asname or alias.name.split(".")[0]
                self.imports[name] = Import(alias.name if alias.asname else name, None, name)

    def _absolute(self, node: python_ast.ImportFrom) -> str:
        tail = node.module or ""
        if not node.level:
            return tail
        package = self.name.split(".")[: -node.level]
        return ".".join([*package, tail]) if tail else ".".join(package)

    # -- classes ------------------------------------------------------------------------------------------------

    def bases(self, name: str) -> tuple[str, ...]:
        """The class and its bases defined in this file, nearest first (depth first, as these files never diamond)."""
        if name not in self._bases:
            return ()
        result = [name]
        for label in self._bases[name]:
            if label in self._bases:
                result.extend(b for b in self.bases(label) if b not in result)
        return tuple(result)

    def external_bases(self, name: str) -> tuple[str, ...]:
        """Dotted bases of the class, or of its bases in this file, that are defined elsewhere."""
        return tuple(label for base in self.bases(name) for label in self._bases[base] if label not in self._bases)

    def method(self, cls: str, name: str) -> Method | None:
        for owner in self.bases(cls):
            for node in _members(self.classes[owner]):
                if isinstance(node, cst.FunctionDef) and node.name.value == name:
                    return Method(owner, node)
        return None

    def reachable_methods(self, cls: str, start: str = "forward") -> tuple[Method, ...]:
        """The methods that run when ``start`` does: ``start`` first, then whatever it calls on ``self``."""
        if (cls, start) in self._reachable:
            return self._reachable[cls, start]
        found: dict[str, Method] = {}
        queue = [start]
        while queue:
            name = queue.pop(0)
            method = None if name in found else self.method(cls, name)
            if method is None:
                continue
            found[name] = method
            for call in find(method.node.body, cst.Call):
                target = self_attribute(call.func)
                if target is not None:
                    queue.append(target)
        self._reachable[cls, start] = tuple(found.values())
        return self._reachable[cls, start]

    def class_named_by(self, value: cst.BaseExpression) -> tuple[str, ...]:
        """Classes of this file that an expression may instantiate: ``C(...)``, ``A(...) if x else B(...)``,
        ``nn.ModuleList([C(...) for ...])``, ``TABLE[key](...)`` with a module-level dict."""
        result: list[str] = []
        for call in find(value, cst.Call):
            label = dotted(call.func)
            if label is not None and label in self.classes:
                result.append(label)
            if isinstance(call.func, cst.Subscript) and isinstance(call.func.value, cst.Name):
                table = self.dispatch_table(call.func.value.value)
                # an implementation table: the others hold the same weights and become the eager one's variant
                result.extend([table["eager"]] if "eager" in table else table.values())
        return tuple(dict.fromkeys(result))

    def _class_names(self, value: cst.BaseExpression) -> tuple[str, ...]:
        """Classes named without a call: ``attention_class = Cross if is_cross else Own``."""
        if isinstance(value, cst.IfExp):
            # a causal LM alone has nothing to cross-attend to
            holds = truth(value.test, lambda part: False if dotted(part) == CROSS_FLAG else None)
            if holds is not None:
                return self._class_names(value.body if holds else value.orelse)
            return (*self._class_names(value.body), *self._class_names(value.orelse))
        label = dotted(value)
        return (label,) if label is not None and label in self.classes else ()

    def dispatch_table(self, name: str) -> Mapping[str, str]:
        """A module-level ``{"eager": C, ...}`` of classes of this file."""
        value = self.constants.get(name)
        if not isinstance(value, cst.Dict):
            return {}
        result = {}
        for element in value.elements:
            if isinstance(element, cst.DictElement) and isinstance(
                element.key, cst.SimpleString | cst.ConcatenatedString
            ):
                label = dotted(element.value)
                if label is not None and label in self.classes:
                    result[str(element.key.evaluated_value)] = label
        return result

    def attributes(self, cls: str) -> Mapping[str, cst.BaseExpression]:
        """``self.x = value`` lines of ``__init__`` (and inherited ones): attribute -> last value assigned."""
        result: dict[str, cst.BaseExpression] = {}
        for owner in reversed(self.bases(cls)):
            for node in _members(self.classes[owner]):
                if isinstance(node, cst.FunctionDef) and node.name.value == "__init__":
                    for line in find(node.body, cst.SimpleStatementLine):
                        bound = assignment(line)
                        attribute = None if bound is None else self_attribute(bound[0])
                        if bound is not None and attribute is not None:
                            result[attribute] = bound[1]
        return result

    def submodules(self, cls: str) -> Mapping[str, tuple[str, ...]]:
        """Attribute -> classes of this file that it may hold, from every assignment in ``__init__``."""
        if cls in self._submodules:
            return self._submodules[cls]
        result: dict[str, tuple[str, ...]] = {}
        for owner in reversed(self.bases(cls)):
            for node in _members(self.classes[owner]):
                if isinstance(node, cst.FunctionDef) and node.name.value == "__init__":
                    result.update(self._submodules_of_init(node))
        self._submodules[cls] = result
        return result

    def _submodules_of_init(self, init: cst.FunctionDef) -> dict[str, tuple[str, ...]]:
        result: dict[str, tuple[str, ...]] = {}
        locals_: dict[str, tuple[str, ...]] = {}
        for line in find(init.body, cst.SimpleStatementLine):
            bound = assignment(line)
            if bound is not None:
                target, value = bound
                classes = self.class_named_by(value)
                for name in find(value, cst.Name):
                    classes = (*classes, *(c for c in locals_.get(name.value, ()) if c not in classes))
                attribute = self_attribute(target)
                if isinstance(target, cst.Name):
                    classes = (*classes, *self._class_names(value))
                if attribute is not None:
                    result[attribute] = (*result.get(attribute, ()), *classes)
                elif isinstance(target, cst.Name) and classes:
                    locals_[target.value] = classes
            for call in find(line, cst.Call):
                # self.layers.append(C(...)) and layers.append(C(...))
                if isinstance(call.func, cst.Attribute) and call.func.attr.value == "append" and call.args:
                    classes = self.class_named_by(call.args[0].value)
                    attribute = self_attribute(call.func.value)
                    if attribute is not None:
                        result[attribute] = (*result.get(attribute, ()), *classes)
                    elif isinstance(call.func.value, cst.Name):
                        local = call.func.value.value
                        locals_[local] = (*locals_.get(local, ()), *classes)
        return {attribute: tuple(dict.fromkeys(classes)) for attribute, classes in result.items() if classes}

    # -- positions ----------------------------------------------------------------------------------------------

    def span(self, where: str = "", node: cst.CSTNode | None = None) -> Span:
        """The place of ``Class.method`` or ``function``; with ``node``, of that node inside it."""
        target = self.definition(where)
        if target is None:
            return Span(self.path)
        line, column = target.lineno, target.col_offset + 1
        owner, _, name = where.rpartition(".")
        function = (
            self.functions.get(where)
            or next(
                (m for m in _members(self.classes[owner]) if isinstance(m, cst.FunctionDef) and m.name.value == name),
                None,
            )
            if owner in self.classes or where in self.functions
            else None
        )
        if node is None or function is None or not any(n is node for n in walk(function)):
            return Span(self.path, line, column)
        if where not in self._positions:
            wrapper = MetadataWrapper(cst.Module([function]), unsafe_skip_copy=True)
            self._positions[where] = wrapper.resolve(PositionProvider)
        positions = self._positions[where]
        start = positions[node].start
        return Span(self.path, line + start.line - positions[function.name].start.line, start.column + column)

    def body(self, where: str) -> list[python_ast.stmt]:
        """The statements of a method or function in the standard library's tree, its docstring left out."""
        node = self.definition(where)
        assert node is not None
        return node.body[python_ast.get_docstring(node) is not None :]

    def definition(self, where: str) -> python_ast.FunctionDef | python_ast.ClassDef | None:
        """The node of ``Class``, ``Class.method`` or ``function`` in the standard library's tree."""
        body: list[python_ast.stmt] = self.ast.body
        found: python_ast.FunctionDef | python_ast.ClassDef | None = None
        for part in where.split("."):
            found = next(
                (n for n in body if isinstance(n, python_ast.FunctionDef | python_ast.ClassDef) and n.name == part),
                None,
            )
            if found is None:
                return None
            body = found.body
        return found


def _members(cls: cst.ClassDef) -> Iterator[cst.CSTNode]:
    return iter(cls.body.body)
