"""``qeff/cache-update``: ``<cache>.update(key, value, layer_idx)`` also says which slots it writes."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.carriers import is_cache_update
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, expression, find, names

ADDRESS = '{"position_ids": position_ids, "batch_index": batch_index, "CCL": comp_ctx_lengths}'


class CacheUpdate:
    id = "qeff/cache-update"
    roles = frozenset({Role.ATTENTION})
    summary = "writes keys and values at position_ids and reads the whole buffer back"
    why = "a fixed buffer has no length of its own: the slots written are the positions, padding (-1) writes nothing"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        k, v = past_key_values.update(x, x, self.layer_idx)
        return k
""",
            "CaseAttention.forward",
            """
    def forward(self, x, past_key_values=None):
        k, v = past_key_values.update(x, x, self.layer_idx, {"position_ids": position_ids, "batch_index": batch_index, "CCL": comp_ctx_lengths})
        return k
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None, cache_position=None, alibi=None):
        cache_kwargs = {"cache_position": cache_position}
        if alibi is None:
            cache_kwargs.update({"sin": x, "cos": x})
        k, v = past_key_values.update(x, x, self.layer_idx, cache_kwargs)
        return k
""",
            "CaseAttention.forward",
            """
    def forward(self, x, past_key_values=None, cache_position=None, alibi=None):
        k, v = past_key_values.update(x, x, self.layer_idx, {"position_ids": position_ids, "batch_index": batch_index, "CCL": comp_ctx_lengths})
        return k
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        seen = {}
        seen.update({"x": x})
        return past_key_values
""",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        dropped: set[str] = set()
        for call in find(site.function.body, cst.Call):
            if is_cache_update(call):
                address = cst.Arg(expression(ADDRESS))
                edits.append(
                    Edit(
                        call,
                        call.with_changes(
                            args=[*(a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in call.args[:3]), address]
                        ),
                    )
                )
                for old in call.args[3:]:
                    dropped |= names(old.value)
        if not edits:
            return NotApplicable()
        # an address that upstream built for its own caches is no longer read
        gone: set[int] = set()
        for line in every_statement(site.function.body):
            if id(line) not in gone and _fills_address(line, dropped):
                edits.append(Edit(line, cst.RemoveFromParent()))
                gone |= {id(n) for n in every_statement(line)}
        return Edits(edits)


def _fills_address(line: cst.BaseStatement, tables: set[str]) -> bool:
    """``table = {...}``, ``table.update(...)``, or an ``if`` that does nothing else."""
    if isinstance(line, cst.If):
        inner = [s for s in every_statement(line) if s is not line]
        return bool(inner) and all(_fills_address(s, tables) for s in inner)
    bound = assignment(line)
    if bound is not None:
        return isinstance(bound[0], cst.Name) and bound[0].value in tables and isinstance(bound[1], cst.Dict)
    small = line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else None
    called = small.value.func if isinstance(small, cst.Expr) and isinstance(small.value, cst.Call) else None
    return isinstance(called, cst.Attribute) and code(called.value) in tables and called.attr.value == "update"
