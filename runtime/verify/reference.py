"""What unmodified upstream says: greedy tokens and the logits they were chosen from, one prompt at a time without
padding.
"""

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig

from runtime.verify.prompts import DECODE_STEPS, Prompts


class Method(Enum):
    """How upstream was asked."""

    GENERATE = "generate"
    WHOLE_CACHE = "generate with a cache that keeps everything"
    RECOMPUTE = "recompute"


class UpstreamFailsError(RuntimeError):
    """Upstream itself cannot run, or gives logits that are no numbers; the message says which."""


@dataclass(frozen=True)
class Reference:
    """Upstream's answer to some prompts.

    tokens: int64 [rows, steps]; logits: float32 [rows, steps, vocab]; method: how it was found; note: why not by
    `generate`, or "".
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    method: Method
    note: str = ""

    @property
    def variety(self) -> int:
        """Different tokens, summed over the rows."""
        return sum(len(set(row)) for row in self.tokens.tolist())

    @property
    def span(self) -> float:
        """The range of all reference logits, the unit of errors."""
        return float(self.logits.max() - self.logits.min())

    def margins(self) -> torch.Tensor:
        """The distance between best and second-best logit relative to `span`, float32 [rows, steps]: small means a
        near tie.
        """
        best = self.logits.topk(2, dim=-1).values
        return (best[..., 0] - best[..., 1]) / self.span


def reference(model: nn.Module, prompts: Prompts, steps: int = DECODE_STEPS) -> Reference:
    """Asks an upstream model by its own `generate`; where that cannot be used, by recomputing the whole sequence for
    every token.

    Raises `UpstreamFailsError` if neither runs or if a logit is not finite.
    """
    try:
        return _checked(by_generate(model, prompts, steps))
    except UpstreamFailsError:
        raise
    except Exception as failure:
        note = f"generate: {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    try:
        found = by_recompute(model, prompts, steps)
    except Exception as failure:
        message = " ".join(str(failure).split())[:300]
        raise UpstreamFailsError(f"forward: {type(failure).__name__}: {message}") from failure
    return _checked(Reference(found.tokens, found.logits, found.method, note))


def _checked(found: Reference) -> Reference:
    if not bool(torch.isfinite(found.logits).all()):
        raise UpstreamFailsError(f"{found.method.value}: upstream's logits are not all finite")
    return found


@torch.no_grad()
def by_generate(model: nn.Module, prompts: Prompts, steps: int, method: Method = Method.GENERATE) -> Reference:
    """Upstream's own greedy `generate`, with the cache that it chooses, or with one without any window. No end token
    stops it, no processor touches the logits.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=steps,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
        pad_token_id=0,
    )
    tokens, logits = [], []
    for row in prompts.rows:
        fresh: Any = copy.deepcopy(model)  # dynamic rope remembers the longest sequence it saw
        fresh.generation_config = copy.deepcopy(settings)
        ids = torch.tensor([row])
        cache = {"past_key_values": DynamicCache()} if method is Method.WHOLE_CACHE else {}
        out = fresh.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **cache)
        if out.sequences.shape[1] != len(row) + steps:
            raise RuntimeError(f"generated {out.sequences.shape[1] - len(row)} tokens instead of {steps}")
        tokens.append(out.sequences[0, len(row) :])
        logits.append(torch.stack([step[0].float() for step in out.logits]))
    return Reference(torch.stack(tokens), torch.stack(logits), method)


@torch.no_grad()
def by_recompute(model: nn.Module, prompts: Prompts, steps: int) -> Reference:
    """The plain definition: for every token a forward pass over the whole sequence so far, from an empty cache.

    The cache stays on because some types have layers that read the keys of another layer from it, and the mask of ones
    is there because some are causal only where they are given one.
    """
    tokens, logits = [], []
    for row in prompts.rows:
        fresh = copy.deepcopy(model)
        sequence = list(row)
        chosen = []
        for _ in range(steps):
            ids = torch.tensor([sequence])
            out = fresh(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
            last = out.logits[0, -1].float()
            chosen.append(last)
            sequence.append(int(last.argmax()))
        tokens.append(torch.tensor(sequence[len(row) :]))
        logits.append(torch.stack(chosen))
    return Reference(torch.stack(tokens), torch.stack(logits), Method.RECOMPUTE)
