"""Sequence parallelism: one packed row shared by the ranks of a process group (DeepSpeed Ulysses, arXiv:2309.14509).

Every rank is given the same whole batch. `pack` keeps a `size`-th of the packed row, so that embedding, norms, MLPs,
experts and the loss see ``[1, T/P, ...]``. Attention alone needs the whole row: queries, keys and values change from
a share of the tokens with all heads, ``[1, H, T/P, D]``, to all tokens with a share of the heads, ``[1, H/P, T, D]``,
and its output changes back. Labels are shifted before the row is cut, so no target is lost between two ranks.

Gradients. The loss is the same number on every rank, and every rank calls ``backward()`` on it. A rank's ``.grad`` is
then what its own tokens contribute, times a factor that depends on how the ranks' gradients are combined afterwards:

* ``"mean"`` (the default, for FSDP2 and DDP): the contribution times `size`. Averaging over the group gives the
  gradient of one process, and averaging over replicas times group gives the mean over the replicas.
* ``"sum"``: the contribution itself, for a caller that adds the gradients of the group up by hand.

With FSDP2, replicas times ranks::

    mesh = init_device_mesh("cuda", (replicas, P), mesh_dim_names=("dp", "sp"))
    MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "rmpad")  # before it is wrapped
    fully_shard(model, mesh=init_device_mesh("cuda", (replicas * P,)))
    with sequence_parallel(mesh["sp"].get_group()):
        loss = model(**batch).loss  # the same batch on the ranks of a replica
    loss.backward()

Where ``num_items_in_batch`` is given, it counts the targets of the batch once, not once per rank.

What is shared and what is not: in training, logits and hidden states stay with the rank that computed them
(``group.whole(states, total)`` gathers them); in evaluation, or with ``logits_layout``, every rank gets all logits.
Refused: batches that differ between the ranks, head counts that cannot be shared out, attention that adds a mask
itself, rotary frequencies chosen by a length that a rank does not see, losses that a model computes itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.training.frequencies import length_limits

Reduction = Literal["mean", "sum"]

_FINGERPRINT_FACTOR = 0x9E3779B97F4A7C1  # odd, and large enough that small differences do not cancel out


@dataclass(frozen=True, eq=False)
class SequenceParallel:
    """The ranks that share one packed row, and what they exchange. All methods but the checks are differentiable.

    Attributes:
        group: the process group; any back end with all-to-all (gloo, NCCL).
        rank: this process's place in the group.
        size: how many ranks there are, the P of the shapes.
        reduction: how the caller combines the ranks' gradients (see the module).
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    reduction: Reduction = "mean"

    @classmethod
    def of(cls, group: dist.ProcessGroup, reduction: Reduction = "mean") -> SequenceParallel:
        """The ranks of `group`.

        Raises:
            ValueError: this process is not in the group, or the reduction is unknown.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; gradients are combined by 'mean' or by 'sum'")
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("this process is not a member of the sequence-parallel group")
        return cls(group, rank, dist.get_world_size(group), reduction)

    def __copy__(self) -> SequenceParallel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SequenceParallel:
        return self

    # The row

    def padding(self, length: int) -> int:
        """How many entries a row of `length` lacks to be cut into equal shares."""
        return -length % self.size

    def share(self, length: int) -> int:
        """How many entries of a row of `length` each rank has, those that lengthen it included."""
        return (length + self.padding(length)) // self.size

    def cut(self, row: Tensor, dim: int = 1, *, fill: int | None = None) -> Tensor:
        """This rank's share of a row that every rank holds.

        Args:
            row: any shape, T along `dim`.
            dim: the dimension to cut.
            fill: what lengthens the row to a multiple of P; None repeats its last entry, a value that the model can
                take wherever it can take the row's.
        Returns:
            ``ceil(T / P)`` entries along `dim`.
        """
        missing = self.padding(row.shape[dim])
        if missing:
            last = row.narrow(dim, row.shape[dim] - 1, 1)
            last = last if fill is None else torch.full_like(last, fill)
            row = torch.cat([row, *[last] * missing], dim)
        share = self.share(row.shape[dim])
        return row.narrow(dim, self.rank * share, share)

    def whole(self, share: Tensor, length: int, dim: int = 1) -> Tensor:
        """The row whose shares the ranks hold, the same on each of them; the inverse of `cut`.

        Args:
            share: this rank's part, of the same shape on every rank.
            length: T; what the row was lengthened by is dropped.
            dim: the dimension that was cut.
        Returns:
            T entries along `dim`. Each rank has to compute the same from it.
        """
        row = cast(Tensor, _Whole.apply(share, self, dim))  # type: ignore[no-untyped-call]
        return row.narrow(dim, 0, length)

    def total(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts, the same on each of them; each rank has to compute the same from it."""
        return cast(Tensor, _Total.apply(part, self))  # type: ignore[no-untyped-call]

    @property
    def gradient_factor(self) -> int:
        """What the gradient is multiplied by where ranks that hold the same value go on with their own parts of it."""
        return self.size if self.reduction == "mean" else 1

    # Attention

    def all_tokens(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From a share of the tokens with all heads to all tokens with a share of the heads.

        KV heads fewer than ranks are repeated, so that every rank has the one that its query heads attend to.

        Args:
            query: ``[1, H, T/P, D]``.
            key: ``[1, Hkv, T/P, D]``.
            value: ``[1, Hkv, T/P, Dv]``.
        Returns:
            ``[1, H/P, T, D]``, ``[1, max(Hkv/P, 1), T, D]``, ``[1, max(Hkv/P, 1), T, Dv]``.
        Raises:
            ValueError: the heads cannot be shared out.
        """
        self.check_heads(query.shape[1], key.shape[1])
        repeats = max(self.size // key.shape[1], 1)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        query, key, value = self._exchange(query, key, value)
        return query, key, value

    def all_heads(self, output: Tensor) -> Tensor:
        """An attention's output from all tokens back to all heads: ``[1, T, H/P, Dv]`` to ``[1, T/P, H, Dv]``."""
        (output,) = self._exchange(output)
        return output

    def own_heads(self, per_head: Tensor) -> Tensor:
        """The entries of a per-head parameter ``[H, ...]`` that belong to this rank's query heads."""
        share = per_head.shape[0] // self.size
        return per_head.narrow(0, self.rank * share, share)

    def _exchange(self, *states: Tensor) -> tuple[Tensor, ...]:
        """Shares dimension 1 out, joins dimension 2; in one message to each rank where the dtypes are the same."""
        if len({part.dtype for part in states}) > 1:
            return tuple(self._exchange(part)[0] for part in states)
        return cast(tuple[Tensor, ...], _Exchange.apply(self, 1, 2, *states))  # type: ignore[no-untyped-call]

    # Checks

    def check_heads(self, query_heads: int, key_value_heads: int) -> None:
        """Raises ValueError where P ranks cannot share these heads."""
        if query_heads % self.size:
            raise ValueError(
                f"sequence parallelism over {self.size} ranks: {query_heads} attention heads cannot be shared out; "
                f"the number of ranks has to divide the number of heads"
            )
        if key_value_heads % self.size and self.size % key_value_heads:
            raise ValueError(
                f"sequence parallelism over {self.size} ranks: {key_value_heads} key-value heads (of {query_heads} "
                f"attention heads) cannot be shared out; one of the numbers has to divide the other"
            )

    def check_config(self, config: Any) -> None:
        """Checks the head counts that a model's config declares, before any layer runs.

        Attention checks the heads that it really gets, so a config that declares none is no error here.

        Raises:
            ValueError: P ranks cannot share the heads.
        """
        text = config.get_text_config()
        for heads in _counts(text, "num_attention_heads"):
            for key_value_heads in _counts(text, "num_key_value_heads") or [heads]:
                self.check_heads(heads, key_value_heads)

    def check_positions(self, config: Any, position_ids: Tensor) -> None:
        """Refuses rotary frequencies that would depend on the rank.

        Upstream chooses the frequencies of the rope types ``dynamic`` and ``longrope`` by the largest position in the
        call, and a rank sees no positions but its own. Up to the length from which the choice changes, all ranks
        choose alike. Reads the positions on the host for these types only.

        Args:
            config: the model's.
            position_ids: int64, of the whole row.
        Raises:
            NotImplementedError: the positions go beyond that length.
        """
        for kind, limit in length_limits(config):
            longest = int(position_ids.max()) + 1
            if longest > limit:
                raise NotImplementedError(
                    f"sequence parallelism with rope type {kind!r} and positions up to {longest}: above {limit} the "
                    f"frequencies depend on the largest position, which differs between the ranks"
                )

    def check_same(self, **held: Tensor | Sequence[int] | None) -> None:
        """Makes sure that every rank was given the same batch. One small all-gather, read on the host.

        Args:
            held: what has to be the same, by name: integer tensors of any shape, sequences of ints, or None.
        Raises:
            ValueError: it is not; the names are in the message. Every rank raises.
        """
        device = next((value.device for value in held.values() if isinstance(value, Tensor)), torch.device("cpu"))
        prints = torch.stack([_fingerprint(value).to(device) for value in held.values()])
        if dist.get_backend(self.group) == "nccl" and device.type == "cpu":
            prints = prints.cuda()
        gathered = _gathered(prints, self).tolist()
        different = [name for index, name in enumerate(held) if len({row[index] for row in gathered}) > 1]
        if different:
            raise ValueError(
                f"the {self.size} ranks of a sequence-parallel group got different batches ({', '.join(different)} "
                f"differ): give each of them the same one, for instance by a sampler over the replicas alone"
            )


_current: SequenceParallel | None = None


def current() -> SequenceParallel | None:
    """The ranks that calls share their rows with, or None: no group was set, or it has one rank."""
    return _current


def set_sequence_parallel(group: dist.ProcessGroup | None, reduction: Reduction = "mean") -> SequenceParallel | None:
    """Makes calls of patched models share their rows over a group, until another is set. For the whole process.

    Args:
        group: the group (of a device mesh: ``mesh["sp"].get_group()``), or None to stop.
        reduction: ``"mean"`` where FSDP2 or DDP averages the gradients over the group, ``"sum"`` where the caller adds
            them up.
    Returns:
        the group's ranks, None without a group or with one rank.
    Raises:
        ValueError: this process is not in the group, or the reduction is unknown.
    """
    global _current
    ranks = None if group is None else SequenceParallel.of(group, reduction)
    _current = ranks if ranks is not None and ranks.size > 1 else None
    return _current


@contextmanager
def sequence_parallel(
    group: dist.ProcessGroup | None, reduction: Reduction = "mean"
) -> Iterator[SequenceParallel | None]:
    """`set_sequence_parallel` for the calls inside; what was set before is set again after."""
    global _current
    before = _current
    try:
        yield set_sequence_parallel(group, reduction)
    finally:
        _current = before


class _Exchange(torch.autograd.Function):
    """All-to-all: cuts `scatter` into a share per rank, joins the ranks' shares along `gather`."""

    @staticmethod
    def forward(ctx: Any, ranks: SequenceParallel, scatter: int, gather: int, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.scatter, ctx.gather = ranks, scatter, gather
        # [P, ...] each: what goes to each rank.
        pieces = [part.unflatten(scatter, (ranks.size, -1)).movedim(scatter, 0) for part in states]  # type: ignore[no-untyped-call]
        sizes = [piece[0].numel() for piece in pieces]
        sent = states[0].new_empty(ranks.size, sum(sizes))
        for message, piece in zip(_parts(sent, sizes), pieces, strict=True):
            message.view(piece.shape).copy_(piece)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=ranks.group)
        # With one head per rank there is nothing to copy up to here; models take a contiguous output for granted.
        return tuple(
            message.view(piece.shape).movedim(0, gather).flatten(gather, gather + 1).contiguous()
            for message, piece in zip(_parts(received, sizes), pieces, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Where each entry came from: the exchange the other way round.
        back = _Exchange.apply(ctx.ranks, ctx.gather, ctx.scatter, *gradients)  # type: ignore[no-untyped-call]
        return (None, None, None, *back)


class _Whole(torch.autograd.Function):
    """All-gather. Backward takes the own share of the gradient, which is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: SequenceParallel, dim: int) -> Tensor:
        ctx.ranks, ctx.dim = ranks, dim
        return _gathered(share, ranks).movedim(0, dim).flatten(dim, dim + 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.chunk(ctx.ranks.size, ctx.dim)[ctx.ranks.rank] * ctx.ranks.gradient_factor, None, None


class _Total(torch.autograd.Function):
    """All-reduce. Backward hands the gradient, which is the same on every rank, to the own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: SequenceParallel) -> Tensor:
        ctx.ranks = ranks
        total = part.clone()
        dist.all_reduce(total, group=ranks.group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.ranks.gradient_factor, None


def _parts(messages: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """``[P, sum of sizes]`` as a ``[P, size]`` each."""
    return cast(tuple[Tensor, ...], messages.split(sizes, 1))  # type: ignore[no-untyped-call]


def _gathered(share: Tensor, ranks: SequenceParallel) -> Tensor:
    """The ranks' tensors, stacked: ``[P, ...]``."""
    gathered = share.new_empty((ranks.size, *share.shape))
    dist.all_gather_single(gathered.flatten(0, 1) if share.dim() else gathered, share.contiguous(), group=ranks.group)
    return gathered


def _fingerprint(value: Tensor | Sequence[int] | None) -> Tensor:
    """A number, int64, that differs for integers that differ; sums wrap around."""
    if value is None:
        return torch.tensor(-1)
    entries = (value if isinstance(value, Tensor) else torch.tensor(value)).flatten().long()
    places = torch.arange(1, len(entries) + 1, device=entries.device) * _FINGERPRINT_FACTOR
    return ((entries + 1) * places).sum() + len(entries)


def _counts(config: Any, name: str) -> list[int]:
    """A number of heads as a config has it: one for all layers, one per layer, or none."""
    value = getattr(config, name, None)
    return [count for count in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(count, int)]
