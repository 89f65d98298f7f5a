"""Masks that a model makes as earlier releases did, without a mask factory; part of ``qeff/mask-builder``."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from codegen.recognize.earlier_masks import earlier_masks
from codegen.rules.base import Edit, Site
from codegen.rules.qeff.eager_choice import names_another
from codegen.syntax import below, code, every_statement, expression

CALL = """create_causal_mask(
    config=self.config, inputs_embeds=EMBEDS, attention_mask=MASK, past_key_values=past_key_values,
    position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths
)"""
FLASH = "is_flash_attention_requested(self.config)"


def earlier_mask_edits(site: Site) -> list[Edit] | cst.BaseStatement:
    """A factory's call for each that makes a causal mask; around it, what runs for other implementations than the eager
    one goes, and what was computed for the old call alone. A statement that still reads counted positions then is
    returned instead."""
    made = earlier_masks(site.module, site.cls, site.function)
    edits = [Edit(m.call, expression(CALL, EMBEDS=m.embeds, MASK=m.mask)) for m in made]
    if not any(isinstance(m.call.func, cst.Attribute) for m in made):
        return edits  # a forward, where other rules see to lengths
    function = site.function
    gone: list[cst.CSTNode] = [
        line
        for line in every_statement(function.body)
        if isinstance(line, cst.If) and line.orelse is None and _for_others(line.test)
    ]
    kept = {n for m in made for arg in (m.embeds, m.mask) for n in _reads(arg, set())}
    calls: set[int] = {id(m.call) for m in made}
    while True:
        read = kept | set(_reads(function.body, calls | {id(n) for n in gone}))
        dead = [
            line
            for line in every_statement(function.body)
            if not any(line is other for g in gone for other in every_statement(g))
            and (bound := _bound(line)) is not None
            and not bound & read
        ]
        if not dead:
            break
        inner = {id(n) for n in every_statement(dead[0])}
        gone = [*(g for g in gone if id(g) not in inner), dead[0]]
    counted = {n for m in made if m.positions is not None for n in _reads(m.positions, set())}
    skipped = calls | {id(n) for n in gone}
    for line in every_statement(function.body):
        inside = any(line is other for g in gone for other in every_statement(g))
        if isinstance(line, cst.SimpleStatementLine) and not inside and counted & set(_reads(line, skipped)):
            return line
    return [*edits, *(Edit(line, cst.RemoveFromParent()) for line in gone)]


def _for_others(test: cst.BaseExpression) -> bool:
    """A test that only another implementation of attention passes."""
    return code(test) == FLASH or names_another(test)


def _bound(line: cst.BaseStatement) -> set[str] | None:
    """The names that a statement binds, where it does nothing else."""
    if isinstance(line, cst.If):
        parts = [_bound(s) for s in every_statement(line) if isinstance(s, cst.SimpleStatementLine)]
        return None if None in parts else set().union(*(p for p in parts if p is not None))
    if not (isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 and isinstance(line.body[0], cst.Assign)):
        return None
    result: set[str] = set()
    for target in (t.target for t in line.body[0].targets):
        for bound in (e.value for e in target.elements) if isinstance(target, cst.Tuple) else (target,):
            if not isinstance(bound, cst.Name):
                return None
            result.add(bound.value)
    return result


def _reads(node: cst.CSTNode, skipped: set[int]) -> Iterator[str]:
    """Names that are read below a node, but for those in skipped nodes."""
    stack: list[cst.CSTNode] = [node]
    while stack:
        current = stack.pop()
        if id(current) in skipped:
            continue
        if isinstance(current, cst.Name):
            yield current.value
        elif isinstance(current, cst.AssignTarget):
            stack += [] if isinstance(current.target, cst.Name | cst.Tuple) else [current.target]
        elif isinstance(current, cst.Attribute | cst.Arg):
            stack.append(current.value)
        else:
            stack.extend(below(current))
