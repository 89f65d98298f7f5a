"""Facts and a target's pipeline -> an `EmittedModule`: which methods change, and why. Nothing is written here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import libcst as cst

from codegen.diagnostics import Diagnostic, Refused
from codegen.ir import FamilyIR, Role
from codegen.recognize.entry_points import entered_methods
from codegen.rules.base import Edits, NotApplicable, Refusal, Rule, Site, rewrite
from codegen.syntax import Replacement, code, find, names
from codegen.targets.base import Expect, Target
from codegen.upstream import UpstreamModule
from codegen.verify import problems

DECORATOR = "derive/decorator"


@dataclass(frozen=True)
class AppliedEdit:
    """What one rule did in one method of one class.

    ``function`` is the method as the rule found it, upstream's with the edits of earlier rules; ``node`` is in it, and
    ``new`` is what it became: other nodes, or for a name whose text stays the statement that imports it now."""

    rule: str
    where: str
    function: cst.FunctionDef = field(repr=False)
    node: cst.CSTNode = field(repr=False)
    new: Replacement | str = field(repr=False)
    cls: str  # whose method it is in; ``where`` names the class that defines it
    imported: str = ""  # the statement that imported the name

    # Texts are made for those who read them: most of the edits of a run are never looked at.

    @property
    def before(self) -> str:
        """The node's text, or where the name that it is came from."""
        return self.imported or code(self.node)

    @property
    def after(self) -> str:
        """The text of what took its place, empty when it was removed; or where the name comes from now."""
        if isinstance(self.new, str):
            return self.new
        if isinstance(self.new, cst.CSTNode):
            return code(self.new)
        return "\n".join(code(n) for n in self.new) if isinstance(self.new, cst.FlattenSentinel) else ""


@dataclass(frozen=True)
class Variant:
    """A generated class: the upstream class, the methods it overrides, and the rules that changed them."""

    upstream: str
    role: Role
    methods: tuple[cst.FunctionDef, ...]
    rules: tuple[Rule, ...]
    mixin: str = ""  # a class of the runtime in front of upstream's, which does what no rewrite has to


@dataclass(frozen=True)
class DerivedFunction:
    """A module-level function of upstream that a rule changed."""

    node: cst.FunctionDef
    rules: tuple[Rule, ...]


@dataclass
class EmittedModule:
    """Everything that one generated file will say."""

    module: UpstreamModule
    family: FamilyIR
    target: Target
    variants: list[Variant] = field(default_factory=list)
    functions: list[DerivedFunction] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # names that rules brought in -> module
    edits: list[AppliedEdit] = field(default_factory=list)
    methods_read: list[str] = field(default_factory=list)  # upstream methods the variants were derived from


def derive(module: UpstreamModule, family: FamilyIR, target: Target) -> EmittedModule:
    """Runs the pipeline over every class below the heads. Raises Refused with every diagnostic found."""
    emitted = EmittedModule(module, family, target)
    diagnostics: list[Diagnostic] = []
    applied: Counter[tuple[str, str]] = Counter()
    functions: dict[str, tuple[cst.FunctionDef, list[Rule]]] = {}
    entered = entered_methods(module, family.reachable)
    for name in family.reachable:
        carrier = family.carrier(name)
        role = carrier.role if carrier is not None else Role.PART
        rotary = next((r for r in family.rotaries if r.name == name), None)
        methods: list[cst.FunctionDef] = []
        rules: list[Rule] = []
        for method in entered[name]:
            if rotary is not None:
                break
            emitted.methods_read.append(f"{method.owner}.{method.name}")
            site = Site(module, family, name, role, method.node, method.owner)
            changed, used = _run(site, target, emitted, diagnostics, applied)
            if used:
                methods.append(written(module, method.owner, changed, target, diagnostics))
                rules += [r for r in used if r not in rules]
            if carrier is not None:
                _functions(module, family, changed, target, emitted, diagnostics, applied, functions)
        if methods:
            emitted.variants.append(Variant(name, role, tuple(methods), tuple(rules)))
        elif rotary is not None and rotary.style in target.rotary_mixins:
            emitted.methods_read.append(rotary.method)
            emitted.variants.append(Variant(name, Role.ROTARY, (), (), target.rotary_mixins[rotary.style]))
        elif role is target.models:
            emitted.variants.append(Variant(name, role, (), ()))
        elif name in family.experts and target.experts_mixin:
            emitted.variants.append(Variant(name, Role.EXPERTS, (), (), target.experts_mixin))
    emitted.methods_read += [n.method for n in family.norms]
    emitted.functions = [DerivedFunction(node, tuple(rules)) for node, rules in functions.values() if rules]
    diagnostics += [problem for check in target.checks for problem in check(module, family)]
    diagnostics += _unmet(module, family, target, applied)
    diagnostics += problems(module, _derived(emitted), target.gone)
    if diagnostics:
        raise Refused(*dict.fromkeys(diagnostics))
    emitted.methods_read = list(dict.fromkeys(emitted.methods_read))
    return emitted


def _run(
    site: Site,
    target: Target,
    emitted: EmittedModule,
    diagnostics: list[Diagnostic],
    applied: Counter[tuple[str, str]],
) -> tuple[cst.FunctionDef, list[Rule]]:
    """All steps over one method: the new method and the rules that changed it."""
    function = site.function
    used: list[Rule] = []
    for step in target.steps:
        if site.role not in step.rule.roles:
            continue
        here = Site(site.module, site.family, site.cls, site.role, function, site.owner)
        match = step.rule.match(here)
        if isinstance(match, NotApplicable):
            continue
        if isinstance(match, Refusal):
            diagnostics.append(match.diagnostic)
            continue
        assert isinstance(match, Edits)
        function = rewrite(function, match)
        applied[(step.rule.id, site.cls)] += 1
        emitted.names.update(match.names)
        used.append(step.rule)
        emitted.edits += [
            AppliedEdit(step.rule.id, site.where, here.function, edit.node, edit.new, site.cls) for edit in match.edits
        ]
        elsewhere = match.names.keys() & site.module.imports.keys()  # upstream's text stays and means something else
        for node in find(here.function.body, cst.Name) if elsewhere else ():
            if (name := node.value) in elsewhere:
                before, after = (
                    f"from {m} import {name}" for m in (site.module.imports[name].module, match.names[name])
                )
                emitted.edits.append(
                    AppliedEdit(step.rule.id, site.where, here.function, node, after, site.cls, imported=before)
                )
    return function, used


def _derived(emitted: EmittedModule) -> list[tuple[str, cst.FunctionDef]]:
    """Every method and function that will be written, by its name upstream."""
    found = [(f.node.name.value, f.node) for f in emitted.functions]
    for variant in emitted.variants:
        for method in variant.methods:
            origin = emitted.module.method(variant.upstream, method.name.value)
            found.append((f"{origin.owner if origin else variant.upstream}.{method.name.value}", method))
    return found


def _functions(
    module: UpstreamModule,
    family: FamilyIR,
    caller: cst.FunctionDef,
    target: Target,
    emitted: EmittedModule,
    diagnostics: list[Diagnostic],
    applied: Counter[tuple[str, str]],
    done: dict[str, tuple[cst.FunctionDef, list[Rule]]],
) -> None:
    """Module-level functions that a carrier calls are looked at as parts: the eager attention function is one."""
    for name in sorted(names(caller.body) & module.functions.keys() - done.keys()):
        emitted.methods_read.append(name)
        site = Site(module, family, "", Role.PART, module.functions[name])
        changed, used = _run(site, target, emitted, diagnostics, applied)
        done[name] = (written(module, "", changed, target, diagnostics) if used else changed, used)


def written(
    module: UpstreamModule, owner: str, function: cst.FunctionDef, target: Target, diagnostics: list[Diagnostic]
) -> cst.FunctionDef:
    """A method of the class ``owner``, or a function, as it is written down: with those decorators only that the target
    keeps, and with ``super()`` still meaning the base of the class it was written in. A decorator that the target does
    not know is a diagnostic: what it does around the body may be part of the result."""
    kept = []
    for decorator in function.decorators:
        if (name := decorator_name(decorator)) in target.kept_decorators:
            kept.append(decorator)
        elif name not in target.dropped_decorators:
            known = ", ".join(sorted(target.kept_decorators | target.dropped_decorators.keys()))
            help_ = "say in codegen/targets whether a variant keeps this decorator, or why it is right without"
            where = f"{owner}.{function.name.value}" if owner else function.name.value
            found = f"@{code(decorator.decorator)} on {where}"
            diagnostics.append(
                Diagnostic(module.span(where, decorator.decorator), DECORATOR, f"one of {known}", found, help_)
            )
    return with_named_super(function, owner).with_changes(decorators=kept)


def decorator_name(decorator: cst.Decorator) -> str:
    """``name`` of ``@name`` and ``@name(...)``."""
    called = decorator.decorator.func if isinstance(decorator.decorator, cst.Call) else decorator.decorator
    return code(called)


def with_named_super(function: cst.FunctionDef, owner: str) -> cst.FunctionDef:
    """A method of the class ``owner`` that means the same in another class; a function as it is."""

    class _Super(cst.CSTTransformer):
        def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
            if isinstance(updated_node.func, cst.Name) and updated_node.func.value == "super" and not updated_node.args:
                return updated_node.with_changes(args=[cst.Arg(cst.Name(owner)), cst.Arg(cst.Name("self"))])
            return updated_node

    result = function.visit(_Super()) if owner and "super" in names(function.body) else function
    assert isinstance(result, cst.FunctionDef)
    return result


def _unmet(
    module: UpstreamModule, family: FamilyIR, target: Target, applied: Counter[tuple[str, str]]
) -> list[Diagnostic]:
    """Steps that had to apply and did not."""
    result = []
    for step in target.steps:
        if step.expect is Expect.ONCE_PER_CLASS and step.role is not None:
            classes = [c.name for c in family.with_role(step.role) if (step.rule.id, c.name) not in applied]
        elif step.expect is Expect.SOMEWHERE and not any(rule == step.rule.id for rule, _ in applied):
            classes = [family.heads[0][1]]
        else:
            classes = []
        for cls in classes:
            where = f"{cls}.forward"
            result.append(
                Diagnostic(
                    module.span(where),
                    step.rule.id,
                    f"that it applies {step.expect.value}",
                    f"no match in {cls}",
                    f"the rule {step.rule.summary}; see `regraft inspect` for what was recognized",
                )
            )
    return result
