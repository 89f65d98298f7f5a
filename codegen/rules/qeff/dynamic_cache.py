"""``qeff/dynamic-cache``: the backbone takes the engine's buffers instead of making a growing cache."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, every_statement, find, names, statement

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
        Case("class CaseModel:\n    def forward(self, x):\n        return x\n", "CaseModel.forward"),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        for line in every_statement(site.function.body):
            if isinstance(line, cst.If) and f"{CACHE} is None" in code(line.test) and _makes_cache(line):
                if edits:
                    return site.refusal(
                        self.id,
                        line,
                        "one place where the cache is made",
                        "a second one",
                        "teach rules/qeff/dynamic_cache.py which of them is the causal cache",
                    )
                new = statement(f"{CACHE} = QEffDynamicCache.from_legacy_cache({CACHE})")
                edits.append(Edit(line, new.with_changes(leading_lines=line.leading_lines)))
        return Edits(edits, {"QEffDynamicCache": "runtime.qeff.cache"}) if edits else NotApplicable()


def _makes_cache(branch: cst.If) -> bool:
    return any(
        (bound := assignment(line)) is not None
        and dotted(bound[0]) == CACHE
        and any((dotted(c.func) or "").endswith("Cache") for c in find(bound[1], cst.Call))
        for line in every_statement(branch.body)
    ) and CACHE in names(branch.test)
