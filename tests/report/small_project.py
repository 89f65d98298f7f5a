"""A project in a git repository: its tree as committed, then regenerated for another release; and pages on it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import HEADS, modeling, rewrite, run, write_release

SCALING = ("scaling=self.scaling,", "")
HOSTILE = '# </script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">&lt;b&gt; <!-- \u2028 é'
UNKNOWN = ("past_key_values.get_seq_length()", "past_key_values.has_previous_state()")
RESPELLED = (
    "input_shape = hidden_states.shape[:-1]",
    "input_shape = (\n            hidden_states.shape[:-1]\n        )",
)

MASK = ("return kv_idx <= q_idx", "return kv_idx < q_idx")


@dataclass(frozen=True)
class Project:
    """``llama`` changes in meaning and carries a hostile comment, ``phi`` in spelling, ``glm`` is refused now; all
    of them import a mask builder that relies on what changed in meaning."""

    root: Path
    old: Path
    new: Path

    @property
    def tree(self) -> Path:
        return self.root / "generated"

    def options(self, page: Path) -> tuple[object, ...]:
        return ("--source", self.new, "--tree", self.tree, "--out", page, "--jobs", 1)


def make(root: Path) -> Project:
    project = Project(root / "project", root / "old", root / "new")
    write_release(project.old, "1.0.0", HEADS)
    write_release(project.new, "2.0.0", HEADS)
    where = "        cos, sin = position_embeddings\n"
    rewrite(project.new, "llama", SCALING, (where, f"        {HOSTILE}\n{where}"))
    rewrite(project.new, "phi", RESPELLED)
    rewrite(project.new, "glm", UNKNOWN)
    masks = project.new / "masking_utils.py"
    masks.write_text(masks.read_text("utf-8").replace(*MASK), "utf-8")
    assert "past_key_values" in (project.new / modeling("glm")).read_text("utf-8")
    generate(project, project.old)
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "for 1.0.0")
    generate(project, project.new)
    return project


def generate(project: Project, release: Path) -> None:
    assert run("generate", "--source", release, "--out", project.tree, "--jobs", 1).code in (0, 1)


def git(project: Project, *arguments: str) -> str:
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(project.root), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def data_of(page: Path) -> Any:
    """What a page holds, as its script reads it."""
    text = page.read_text("utf-8")
    start = text.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    return json.loads(text[start : text.index("</script>", start)])
