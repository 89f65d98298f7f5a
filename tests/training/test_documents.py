"""The examples of README's section on training and of docs/training.md run as they are written."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_variants import tiny

from runtime.training import MONKEY_PATCHER
from runtime.training.features import active
from runtime.training.patching import undo_everything

ROOT = Path(__file__).resolve().parents[2]


def code(text: str, folder: Path) -> str:
    """The Python blocks, one after the other; a checkpoint's and an output's path are filled in."""
    blocks = [block.split("```", 1)[0] for block in text.split("```python\n")[1:]]
    assert blocks
    return "\n".join(blocks).replace("path/to/model", str(folder / "model")).replace('"out"', repr(str(folder / "out")))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny(eos_token_id=None, bos_token_id=None, pad_token_id=0).save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_readme(checkpoint: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("\n## Train\n", 1)[1].split("\n## ", 1)[0]
    names: dict[str, Any] = {}
    exec(code(section, checkpoint), names)
    assert active(names["model"], "rmpad") and torch.isfinite(names["loss"])
    assert all(parameter.grad is not None for parameter in names["model"].parameters())


def test_the_document(checkpoint: Path) -> None:
    pytest.importorskip("accelerate")
    ids = torch.randint(1, 19, (4, 6))
    dist.init_process_group("gloo", init_method=f"file://{checkpoint}/rendezvous", rank=0, world_size=1)
    names: dict[str, Any] = {
        "dataset": [{"input_ids": row} for row in ids],
        "collator": lambda rows: {
            key: torch.stack([it["input_ids"] for it in rows]) for key in ("input_ids", "labels")
        },
        "group": dist.group.WORLD,
    }
    try:
        exec(code((ROOT / "docs/training.md").read_text("utf-8"), checkpoint), names)
        assert names["trainer"].state.global_step == 2 and active(names["model"], "rmpad")
        assert not active(names["built"], "rmpad"), "undone"
        assert not names["model"].get_input_embeddings().weight.requires_grad
    finally:
        dist.destroy_process_group()
        undo_everything()
        del MONKEY_PATCHER["llama"]
