"""Configurations that hand-written variants of these families are known to get wrong without an error message.

Each is a case like any other, kept here by name so that none of them can disappear: a test verifies every one.
"""

from dataclasses import dataclass
from typing import Any, Final

from runtime.verify.cases import Case
from runtime.verify.sizes import WINDOW

_YARN: Final[dict[str, Any]] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}
_LONGROPE_LENGTH: Final = 8
_RING: Final = "a ring cache of one window loses the keys that a chunk's first tokens need"
_PADS: Final = "padding is written to the last slot, over a token that is there"


@dataclass(frozen=True)
class KnownError:
    """A family, a configuration of it, and what goes wrong there elsewhere."""

    family: str
    case: Case
    error: str


def _longrope(rotated: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": _LONGROPE_LENGTH,
        "short_factor": [1.0 + 0.05 * i for i in range(rotated // 2)],
        "long_factor": [1.5 + 0.5 * i for i in range(rotated // 2)],
    }


def _known(family: str, name: str, error: str, **overrides: Any) -> KnownError:
    return KnownError(family, Case(name, overrides), error)


KNOWN_ERRORS: Final[tuple[KnownError, ...]] = (
    _known("granite", "logits scaling", "logits are not divided by logits_scaling", logits_scaling=8.0),
    _known("granitemoe", "logits scaling", "logits are not divided by logits_scaling", logits_scaling=8.0),
    _known("gemma2", "attention soft cap", "attention scores are not capped", attn_logit_softcapping=5.0),
    _known(
        "gemma2",
        "alternating windows",
        "every layer attends to everything",
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_hidden_layers=4,
    ),
    _known("phi3", "window", "the window is ignored", sliding_window=WINDOW),
    _known(
        "phi3",
        "longrope",
        "neither the frequencies change beyond the original length nor is there an attention factor",
        rope_parameters=_longrope(16),
        original_max_position_embeddings=_LONGROPE_LENGTH,
        sliding_window=None,
    ),
    _known(
        "phi3",
        "partial rotary",
        "the whole head is rotated",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
    ),
    _known(
        "phi3",
        "partial rotary with longrope",
        "both of the above",
        rope_parameters={**_longrope(12), "partial_rotary_factor": 0.75},
        original_max_position_embeddings=_LONGROPE_LENGTH,
        sliding_window=None,
    ),
    _known("mistral", "yarn", "cos and sin lack the attention factor", rope_parameters=_YARN),
    _known("qwen3_moe", "yarn", "cos and sin lack the attention factor", rope_parameters=_YARN),
    _known(
        "qwen3_moe",
        "window",
        "the window is ignored",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=0,
    ),
    _known(
        "qwen2",
        "windows per layer",
        "the window is applied to the first layers too",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    _known(
        "qwen3",
        "windows per layer",
        "the window is applied to the first layers too",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    _known("glm4_moe", "expert groups", "the selection is not limited to groups", n_group=2, topk_group=1),
    # Every case is fed in chunks of 4, 5 and 16 tokens (`scenarios`) over windows of 7.
    _known(
        "gemma3_text",
        "chunks past a window",
        "a ring cache of one window loses the keys that a chunk's first tokens need",
    ),
    _known(
        "gpt_oss", "chunks past a window", "a ring cache of one window loses the keys that a chunk's first tokens need"
    ),
    _known(
        "mistral", "chunks past a window", "a ring cache of one window loses the keys that a chunk's first tokens need"
    ),
    # The last scenario fills the context with a padded chunk.
    _known("llama", "pads beside a live slot", "padding is written to the last slot, over a token that is there"),
    _known("gemma2", "pads beside a live slot", "padding is written to the last slot, over a token that is there"),
)
