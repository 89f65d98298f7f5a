"""``qeff/dynamic-cache``: the backbone takes the engine's buffers instead of making a growing cache."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import (
    Replacement,
    assignment,
    code,
    dotted,
    every_statement,
    expression,
    find,
    names,
    one_line,
    statement,
    statements,
    walk,
)

CACHE = "past_key_values"


class DynamicCache:
    id = "qeff/dynamic-cache"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE})
    summary = "wraps the caller's key/value buffers in QEffDynamicCache"
    why = "the buffers are inputs and outputs of the graph, of fixed length, owned by the engine"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        return x
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        past_key_values = QEffDynamicCache.from_legacy_cache(past_key_values)
        return x
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        if past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return x
""",
            "CaseModel.forward",
            refuses="a second one",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        # the cache
        if use_cache:
            if past_key_values is None:
                past_key_values = DynamicCache(config=self.config)
            count(past_key_values)
        return x
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        # the cache
        past_key_values = QEffDynamicCache.from_legacy_cache(past_key_values)
        count(past_key_values)
        return x
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        if self.training:
            if past_key_values is None:
                past_key_values = DynamicCache(config=self.config)
        return x
""",
            "CaseModel.forward",
            refuses="if self.training",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        x = self.layer(x, past_key_values=past_key_values if use_cache else None)
        return Output(x, past_key_values=past_key_values if use_cache else None)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        past_key_values = QEffDynamicCache.from_legacy_cache(past_key_values)
        x = self.layer(x, past_key_values=past_key_values)
        return Output(x, past_key_values=past_key_values if use_cache else None)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self.embed(x)
        # again
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        return x
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        past_key_values = QEffDynamicCache.from_legacy_cache(past_key_values)
        x = self.embed(x)
        return x
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        if use_cache or past_key_values is None:
            past_key_values = DynamicCache()
        return x
""",
            "CaseModel.forward",
            refuses="if use_cache or past_key_values is None",
        ),
        Case("class CaseModel:\n    def forward(self, x):\n        return x\n", "CaseModel.forward"),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        for line in every_statement(site.function.body):
            if isinstance(line, cst.If) and f"{CACHE} is None" in code(line.test) and _makes_cache(line):
                if not _where_there_is_none(line.test):
                    return site.refusal(
                        self.id,
                        line,
                        f"a cache made where there is none: `{CACHE} is None`, and `use_cache` at most",
                        f"if {code(line.test)}",
                        "teach rules/qeff/dynamic_cache.py when the caller's buffers are not used",
                    )
                if edits and code(_bare(edits[0].node)) == code(_bare(line)):
                    edits.append(Edit(line, cst.RemoveFromParent()))  # once more what was done
                    continue
                if edits:
                    return site.refusal(
                        self.id,
                        line,
                        "one place where the cache is made",
                        "a second one",
                        "teach rules/qeff/dynamic_cache.py which of them is the causal cache",
                    )
                new = statement(f"{CACHE} = QEffDynamicCache.from_legacy_cache({CACHE})")
                new = new.with_changes(leading_lines=line.leading_lines)
                around = _branches_around(site.function.body, line)
                if not around:
                    edits.append(Edit(line, new))
                elif len(around) == 1 and _only_asks_for_use(around[0], line):
                    edits.append(Edit(around[0], _always(around[0], line, new)))
                else:
                    return site.refusal(
                        self.id,
                        around[0],
                        "the cache made whatever the branch, or where use_cache is set",
                        f"if {code(around[0].test)}",
                        "teach rules/qeff/dynamic_cache.py when the caller's buffers come here",
                    )
        if not edits:
            return NotApplicable()
        edits += [Edit(argument, expression(CACHE)) for argument in _withheld(site.function.body)]
        return Edits(edits, {"QEffDynamicCache": "runtime.qeff.cache"})


def _bare(node: cst.CSTNode) -> cst.CSTNode:
    """Without the comments above it."""
    return node.with_changes(leading_lines=[])


def _makes_cache(branch: cst.If) -> bool:
    return any(
        (bound := assignment(line)) is not None
        and dotted(bound[0]) == CACHE
        and any((dotted(c.func) or "").endswith("Cache") for c in find(bound[1], cst.Call))
        for line in every_statement(branch.body)
    ) and CACHE in names(branch.test)


def _where_there_is_none(test: cst.BaseExpression) -> bool:
    """``past_key_values is None``, alone or with ``use_cache``."""
    if isinstance(test, cst.BooleanOperation):
        sides = {one_line(test.left), one_line(test.right)}
        return isinstance(test.operator, cst.And) and sides == {"use_cache", f"{CACHE} is None"}
    return one_line(test) == f"{CACHE} is None"


def _withheld(body: cst.CSTNode) -> Iterator[cst.IfExp]:
    """Where a submodule gets the cache only ``if use_cache``. What is returned is another rule's."""
    returned = {id(node) for line in find(body, cst.Return) for node in walk(line)}
    for call in find(body, cst.Call):
        for given in (arg.value for arg in call.args if id(call) not in returned):
            if isinstance(given, cst.IfExp) and names(given) == {CACHE, "use_cache", "None"}:
                yield given


def _branches_around(body: cst.CSTNode, line: cst.If) -> list[cst.If]:
    """The ``if`` statements that a statement is in, outermost first."""
    branches = (s for s in every_statement(body) if isinstance(s, cst.If) and s is not line)
    return [branch for branch in branches if any(node is line for node in walk(branch))]


def _only_asks_for_use(branch: cst.If, line: cst.If) -> bool:
    return dotted(branch.test) == "use_cache" and branch.orelse is None and any(s is line for s in statements(branch))


def _always(branch: cst.If, line: cst.If, new: cst.BaseStatement) -> Replacement:
    """The branch's statements with one replaced: the buffers are there whether or not use_cache is."""
    body = [new if each is line else each for each in statements(branch)]
    first = body[0]
    assert isinstance(first, cst.SimpleStatementLine | cst.BaseCompoundStatement)
    body[0] = first.with_changes(leading_lines=[*branch.leading_lines, *first.leading_lines])
    return cst.FlattenSentinel(body)
