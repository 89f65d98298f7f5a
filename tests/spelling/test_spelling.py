"""Upstream in other words gives the same variants or refusals; upstream with another meaning is seen, and followed or
refused. A sample; `report.py` does it for as many files as there is time for, with numbers.
"""

import ast
from collections import Counter

import pytest
from followed import Followed
from function_rewrites import rename_locals
from meanings import KINDS, OF_CLASSES, mutants
from numbers_of import measure
from spellings import SPELLINGS, everywhere
from trials import Mutated, Respelled, agreement, chosen, mutate, relied, respell, trial
from variants import Verdict, original

FILES = tuple(f"models/{name}/modeling_{name}.py" for name in ("llama", "gemma2", "mbart"))
WIDER = tuple(f"models/{name}/modeling_{name}.py" for name in ("phimoe", "falcon", "qwen3", "deepseek_v3"))
CERTAIN = (
    "printed anew",
    "parenthesise",
    "comment every line",
    "wrap in brackets",
    "reversed methods",
    "explicit super",
    "reverse keywords",
    "drop annotations",
    "new docstring",
    "bare return",
    "rename locals",
    "bare strings and pass",
    "turned comparisons",
)
"""Spellings after which a variant must still be there, the same up to names."""


@pytest.mark.parametrize("path", FILES)
def test_common_spellings_give_the_same_variants(path: str) -> None:
    rows = respell(path, CERTAIN)
    assert {row.spelling for row in rows} == set(CERTAIN)
    assert [row for row in rows if row.verdict not in (Verdict.SAME, Verdict.NAMES)] == []


def test_every_spelling_and_kind_applies_somewhere() -> None:
    texts = [original(path) for path in (*FILES, *WIDER)]
    assert [s.name for s in SPELLINGS if all(s.rewrite(text) is None for text in texts)] == []
    made = {m.kind for path in (*FILES, *WIDER) for m in mutants(original(path), relied(path))}
    named = {one.__name__.replace("_", " ") for one in (*KINDS, *OF_CLASSES)}
    assert named - made == set()
    assert len(made - named) >= 15, "mutants of any kind of syntax"


def test_rewrites_are_the_same_every_time_and_change_the_text() -> None:
    text = original(FILES[0])
    for spelling in SPELLINGS:
        once = spelling.rewrite(text)
        assert once == spelling.rewrite(text) and once != text
        if once is not None:
            ast.parse(once)
    assert [m.text for m in mutants(text, relied(FILES[0]))] == [m.text for m in mutants(text, relied(FILES[0]))]


def test_one_method_alone() -> None:
    text = everywhere(rename_locals, only="LlamaMLP.forward")(original(FILES[0]))
    assert text is not None
    before, after = ({ast.unparse(n) for n in ast.parse(t).body} for t in (original(FILES[0]), text))
    assert len(after - before) == 1


@pytest.mark.parametrize("path", FILES[:1])
def test_changes_of_meaning_are_seen_and_not_lost(path: str) -> None:
    """What a variant has something of its own for is left to numbers, and is little."""
    rows = mutate(path)
    assert len(rows) >= 70
    assert [row for row in rows if not row.seen] == []
    count = Counter(row.followed for row in rows)
    assert count[Followed.CARRIED] > count[Followed.REPLACED] and count[Followed.INHERITED] > count[Followed.REPLACED]
    never_replaced = {"scale dropped", "residual dropped", "norm moved", "cos and sin swapped", "projection swapped"}
    never_replaced |= {"gate and up swapped", "keys and values swapped", "mask not passed on", "heads not repeated"}
    assert [row for row in rows if row.followed is Followed.REPLACED and row.kind in never_replaced] == []


@pytest.mark.slow
def test_numbers_follow() -> None:
    """Rewrites that texts do not decide, and mutants that variants replace: nothing differs."""
    undecided: list[Respelled] = [r for p in WIDER for r in respell(p) if r.verdict is Verdict.UNDECIDED]
    replaced: list[Mutated] = [r for p in WIDER for r in mutate(p) if r.followed is Followed.REPLACED]
    rows = [*chosen(undecided, lambda r: (r.spelling, r.target), 1), *chosen(replaced, lambda r: (r.kind, r.target), 1)]
    assert len(rows) >= 20
    found = dict(zip(rows, (f for _, f in measure([trial(row) for row in rows], 2)), strict=True))
    assert {row: one.message for row, one in found.items() if agreement(one) == "differs"} == {}
    assert sum(agreement(one) == "agrees" for one in found.values()) >= 10
