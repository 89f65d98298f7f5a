"""Which arithmetic an eager attention function does: the shapes for which other kernels compute the same."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import libcst as cst

from codegen.ir import AttentionStyle
from codegen.recognize.wording import Wording, says
from codegen.syntax import assignment, every_statement, find, names, reads
from codegen.upstream import UpstreamModule

TABLE = "ALL_ATTENTION_FUNCTIONS"
MASK = "attention_mask"
REPEAT_KV = """
batch, num_key_value_heads, slen, head_dim = hidden_states.shape
if n_rep == 1: return hidden_states
hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)
"""

# One line of the arithmetic, in any wording -> its stage. Stages may be left out, never reordered. What is
# the same up to rounding of half precision is one shape: where the softmax is cast, and `- 1` for `- 2`, differ in no
# float32 number.
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "scale",
        (
            "if scaling is None: scaling = query.size(-1) ** (-0.5)",
            "if scaling is None: scaling = module.head_dim ** (-0.5)",
        ),
    ),
    ("keys", ("key_states = repeat_kv(key, module.num_key_value_groups)",)),
    ("values", ("value_states = repeat_kv(value, module.num_key_value_groups)",)),
    (
        "scores",
        tuple(
            f"attn_weights = torch.matmul(query, {k}.transpose({t})) * scaling"
            for k in ("key", "key_states")
            for t in ("2, 3", "-1, -2")
        ),
    ),
    (
        "soft-cap",
        (
            "if softcap is not None: attn_weights = attn_weights / softcap;"
            " attn_weights = torch.tanh(attn_weights); attn_weights = attn_weights * softcap",
        ),
    ),
    (
        "mask",
        (
            "if attention_mask is not None: attn_weights = attn_weights + attention_mask",
            "attn_weights = attn_weights + attention_mask",
            # a mask is as long as the keys; buffers are another target's
            *(
                f"if attention_mask is not None: {name} = attention_mask[:, :, :, :{keys}.shape[-2]];"
                f" attn_weights = attn_weights + {name}"
                for name in ("attention_mask", "causal_mask")
                for keys in ("key", "key_states")
            ),
        ),
    ),
    (
        "sinks",
        ("sinks = module.sinks.reshape(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[-2], -1)",),
    ),
    ("sinks-joined", ("combined_logits = torch.cat([attn_weights, sinks], dim=-1)",)),
    ("sinks-stable", ("combined_logits = combined_logits - combined_logits.max(dim=-1, keepdim=True).values",)),
    ("sinks-softmax", ("probs = F.softmax(combined_logits, dim=-1, dtype=combined_logits.dtype)",)),
    ("sinks-dropped", ("scores = probs[..., :-1]",)),
    (
        "softmax",
        (
            "attn_weights = nn.functional.softmax(attn_weights, dim=-1)",
            "attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)",
        ),
    ),
    ("cast", ("attn_weights = attn_weights.type(value.dtype)",)),
    (
        "dropout",
        (
            "attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)",
            "attn_weights = nn.functional.dropout(scores, p=dropout, training=module.training).to(value_states.dtype)",
        ),
    ),
    (
        "weighted",
        (
            "attn_output = torch.matmul(attn_weights, value)",
            "attn_output = torch.matmul(attn_weights, value_states)",
            "attn_output = torch.matmul(attn_weights.to(value.dtype), value)",
        ),
    ),
    (
        "heads-inside",
        ("attn_output = attn_output.transpose(1, 2).contiguous()", "attn_output = attn_output.transpose(1, 2)"),
    ),
    ("result", ("return (attn_output, attn_weights)",)),
)
NEEDED = frozenset({"scores", "mask", "dropout", "weighted", "heads-inside", "result"})
SINKS = frozenset({"sinks", "sinks-joined", "sinks-stable", "sinks-softmax", "sinks-dropped"})
LOCALS = frozenset(
    {"attn_weights", "attn_output", "key_states", "value_states", "sinks", "combined_logits", "probs", "scores"}
)


def attention_style(module: UpstreamModule, cls: str) -> AttentionStyle:
    """INTERFACE where the class only hands its mask to what it takes from upstream's table, and the eager function it
    would take otherwise is of a known shape; else OWN: any arithmetic can be given a mask to add."""
    methods = module.reachable_methods(cls)
    eager: set[str] = set()
    for method in methods:
        if TABLE in names(method.node.body):
            eager |= {n for n in names(method.node.body) if n in module.functions and n.startswith("eager")}
    if not eager or not all(_is_known(module, name) for name in eager):
        return AttentionStyle.OWN
    return AttentionStyle.INTERFACE if all(_only_hands_on(m.node) for m in methods) else AttentionStyle.OWN


def _only_hands_on(function: cst.FunctionDef) -> bool:
    """Whether every read of the mask is an argument of a call of the function taken from upstream's table."""
    interfaces = {
        bound[0].value
        for line in every_statement(function.body)
        if (bound := assignment(line)) is not None and isinstance(bound[0], cst.Name) and TABLE in names(bound[1])
    }
    handed = {
        id(argument.value)
        for call in find(function.body, cst.Call)
        if isinstance(call.func, cst.Name) and call.func.value in interfaces
        for argument in call.args
    }
    return all(id(read) in handed for read in reads(function.body, {MASK}))


def _is_known(module: UpstreamModule, name: str) -> bool:
    function = module.definition(name)
    assert isinstance(function, ast.FunctionDef)
    stages = list(_stages(function))
    found = {STAGES[index][0] for index in stages if index >= 0}
    if -1 in stages or stages != sorted(set(stages)) or not found >= NEEDED:
        return False
    if ("keys" in found) != ("values" in found) or ("softmax" in found) == bool(SINKS & found):
        return False
    if SINKS & found not in (SINKS, frozenset()):
        return False
    return "keys" not in found or _repeats_heads(module)


def _stages(function: ast.FunctionDef) -> Iterator[int]:
    """The stage that each statement belongs to, -1 for one that is not known."""
    wording = Wording(function, LOCALS)
    for statement in wording.statements:
        fits = (i for i, (_, lines) in enumerate(STAGES) if any(wording.reads_as(statement, line) for line in lines))
        yield next(fits, -1)


def _repeats_heads(module: UpstreamModule) -> bool:
    function = module.definition("repeat_kv")
    return isinstance(function, ast.FunctionDef) and says(function, REPEAT_KV)
