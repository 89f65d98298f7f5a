"""``qeff/returned-cache``: the backbone hands the buffers back as the plain tuples the graph returns."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.dynamic_cache import CACHE
from codegen.syntax import arguments, assignment, expression, find, names


class ReturnedCache:
    id = "qeff/returned-cache"
    roles = frozenset({Role.BACKBONE})
    summary = "returns past_key_values as ((key, value), ...), one pair a layer"
    why = "the updated buffers are the graph's retained-state outputs, use_cache or not"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        return Output(last_hidden_state=x, past_key_values=past_key_values if use_cache else None)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        return Output(last_hidden_state=x, past_key_values=past_key_values.to_legacy_cache())
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        past_key_values = past_key_values if use_cache else None
        return Output(last_hidden_state=x, past_key_values=past_key_values)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        return Output(last_hidden_state=x, past_key_values=past_key_values.to_legacy_cache())
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None, use_cache=None):
        next_cache = past_key_values if use_cache else None
        return Output(last_hidden_state=x, past_key_values=next_cache)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None, use_cache=None):
        next_cache = past_key_values if use_cache else None
        return Output(last_hidden_state=x, past_key_values=past_key_values.to_legacy_cache())
""",
        ),
        Case(
            "class CaseModel:\n    def forward(self, x):\n        return Output(last_hidden_state=x)\n",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        same = {CACHE, "use_cache", "None"}  # and names for the cache where use_cache is set
        for statement in find(site.function.body, cst.SimpleStatementLine):
            bound = assignment(statement)
            if bound is not None and isinstance(bound[0], cst.Name) and isinstance(bound[1], cst.IfExp):
                if names(bound[1]) == {CACHE, "use_cache", "None"}:
                    if bound[0].value == CACHE:
                        edits.append(Edit(statement, cst.RemoveFromParent()))
                    same.add(bound[0].value)
        for line in find(site.function.body, cst.Return):
            if isinstance(line.value, cst.Call):
                given = arguments(line.value).get(CACHE)
                if given is not None and names(given.value) <= same:
                    edits.append(Edit(given.value, expression(f"{CACHE}.to_legacy_cache()")))
        return Edits(edits) if edits else NotApplicable()
