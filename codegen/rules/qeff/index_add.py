"""``qeff/index-add``: rows added up at indices that repeat."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import code, expression, find

SOURCE = "runtime.qeff.experts"


class IndexAdd:
    id = "qeff/index-add"
    roles = frozenset({Role.PART})
    summary = "adds rows up by a scatter that counts repeated indices"
    why = "the exporter's index_add keeps one of the rows that go to the same place, and says so in a warning only"
    cases = (
        Case(
            """
class CaseExperts:
    def forward(self, rows, index):
        zeros = torch.zeros(4, 5)
        return zeros.index_add(0, index, rows)
""",
            "CaseExperts.forward",
            """
    def forward(self, rows, index):
        zeros = torch.zeros(4, 5)
        return add_rows(zeros, index, rows)
""",
        ),
        Case(
            """
class CaseExperts:
    def forward(self, rows, index):
        out = torch.zeros(4, 5)
        out.index_add_(1, index, rows)
        return out
""",
            "CaseExperts.forward",
            refuses="`out.index_add_(1, index, rows)`",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        for call in find(site.function.body, cst.Call):
            if not isinstance(call.func, cst.Attribute) or call.func.attr.value not in ("index_add", "index_add_"):
                continue
            given = [a.value for a in call.args if a.keyword is None]
            if call.func.attr.value != "index_add" or not len(given) == len(call.args) == 3 or code(given[0]) != "0":
                return site.refusal(
                    self.id,
                    call,
                    "`start.index_add(0, index, rows)`",
                    f"`{code(call)}`",
                    "teach rules/qeff/index_add.py this form",
                )
            new = expression("add_rows(START, INDEX, ROWS)", START=call.func.value, INDEX=given[1], ROWS=given[2])
            edits.append(Edit(call, new))
        return Edits(edits, {"add_rows": SOURCE}) if edits else NotApplicable()
