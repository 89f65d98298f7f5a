"""``qeff/cache-update``: ``<cache>.update(key, value, layer_idx)`` also says which slots it writes."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.carriers import is_cache_update
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, every_statement, expression, find, names

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
        for line in every_statement(site.function.body):
            bound = assignment(line)
            if (
                bound is not None
                and isinstance(bound[0], cst.Name)
                and bound[0].value in dropped
                and isinstance(bound[1], cst.Dict)
            ):
                edits.append(Edit(line, cst.RemoveFromParent()))
        return Edits(edits)
