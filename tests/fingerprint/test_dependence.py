"""What counts of the files that a modeling file imports, on releases of a few lines."""

from collections.abc import Mapping

import pytest

from runtime.fingerprint.dependence import Import, Release, compared

MODEL = "models/a/modeling_a.py"

FILES = {
    "masks.py": """
from .deep import deeper
LIMIT = 3
def mask(x): return inner(x) + deeper(x)
def inner(x): return x < LIMIT
def other(x): return x
""",
    "deep.py": "def deeper(x): return x\n",
    "tables.py": """
def first(x): return x
def second(x): return helper(x)
def helper(x): return -x
class Act:
    def forward(self, x): return x
    def extra(self): return first(1)
class Maker(dict):
    def __getitem__(self, key): return super().__getitem__(key)()
FUNCTIONS = {"first": first}
FUNCTIONS["second"] = second
CLASSES = Maker(act=Act)
""",
    "layers.py": """
class Linear:
    def forward(self, x): return self.scaled(x)
    def scaled(self, x): return 2 * x
class Base:
    def load(self): return 0
class Config: ...
""",
    "hooks.py": "def hook(f): return around(f)\ndef around(f): return f\ndef auto_docstring(f): return f\n",
    "tools/__init__.py": "from .one import asked as ask, wrap\nfrom . import logging\n",
    "tools/one.py": "def asked(): return 1\ndef wrap(f): return f\n",
    "turn.py": "from .about import name\n",
    "about.py": "from .turn import name\n",
    "models/b/modeling_b.py": """
from ...masks import mask
class Norm:
    def __init__(self): self.eps = 1
    def forward(self, x): return mask(x)
    def extra(self): return self.eps
class Unused: ...
""",
    "models/a/configuration_a.py": "class AConfig: ...\n",
}


def _led_to(imports: str, body: str, files: Mapping[str, str] = FILES) -> set[str]:
    text = f"{imports}\n{body}\n"
    release = Release({**files, MODEL: text}.get)
    file = release.file(MODEL)
    assert file is not None
    names = file.reliance.of(["f"])
    parts = release.parts(file.imports(names))
    found = {name for one in parts.values() for name in one}
    return found


@pytest.mark.parametrize(
    ("imports", "body", "led_to"),
    [
        (
            "from ...masks import mask",
            "def f(x): return mask(x)",
            {"masks.py:mask", "masks.py:inner", "masks.py:LIMIT"},
        ),
        ("from transformers.masks import inner as i", "def f(x): return i(x)", {"masks.py:inner", "masks.py:LIMIT"}),
        ("", "def f(x):\n    from ...masks import other\n    return other(x)", {"masks.py:other"}),
        ("from ...masks import LIMIT", "def f(x): return LIMIT", {"masks.py:LIMIT"}),
        (
            "from ...tables import FUNCTIONS",
            "def f(x): return FUNCTIONS['first'](x)",
            {f"tables.py:{one}" for one in ("FUNCTIONS['first']", "FUNCTIONS#2", "first", "second", "helper")},
        ),
        (
            "from ...tables import CLASSES",
            "def f(x): return CLASSES['act'](x)",
            {
                f"tables.py:{one}"
                for one in ("CLASSES", "Maker", "Maker.__getitem__", "Act", "Act.forward", "Act.extra", "first")
            },
        ),
        (
            "from ...layers import Linear, Base",
            "def f(x: Base): return Linear()(x), Base",
            {"layers.py:Linear", "layers.py:Linear.forward", "layers.py:Linear.scaled"},
        ),
        ("from .configuration_a import AConfig", "def f(x): return AConfig()", set()),
        (
            "from ..b.modeling_b import Norm",
            "def f(x): return Norm()(x)",
            {f"models/b/modeling_b.py:{one}" for one in ("Norm", "Norm.__init__", "Norm.forward", "Norm.extra")}
            | {"masks.py:mask", "masks.py:inner", "masks.py:LIMIT"},
        ),
        ("from ...hooks import hook, auto_docstring", "@auto_docstring\n@hook\ndef f(x): return x", {"hooks.py:hook"}),
        (
            "from ...hooks import hook",
            "@hook\ndef f(x): return hook(x)",
            {"hooks.py:hook", "hooks.py:around"},
        ),
        ("from ...tools import ask, logging", "def f(x): return ask(), logging", {"tools/one.py:asked"}),
        ("from ...tools import wrap", "@wrap\ndef f(x): return x", set()),
        ("from ...turn import name\nfrom ...nowhere import gone", "def f(x): return name, gone", set()),
        ("from ...masks import mask", "def f(x): return x", set()),
    ],
)
def test_what_counts(imports: str, body: str, led_to: set[str]) -> None:
    assert _led_to(imports, body) == led_to


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, {}),
        ({'{"first": first}': '{"first": first, "third": helper}'}, {}),
        ({'{"first": first}': '{"first": first, "third": third}\ndef third(x): return x'}, {}),
        ({'{"first": first}': '{"first": second}'}, {"tables.py:FUNCTIONS['first']": "changed in meaning"}),
        ({'{"first": first}': '{"one": first}'}, {"tables.py:FUNCTIONS['first']": "gone"}),
        ({'{"first": first}': "made(first)"}, {"tables.py:FUNCTIONS['first']": "gone"}),
        ({"def helper(x): return -x": "def helper(x): return x"}, {"tables.py:helper": "changed in meaning"}),
        (
            {"def helper(x): return -x": "def helper(x): return more(x)\ndef more(x): return x"},
            {"tables.py:helper": "changed in meaning"},
        ),
        (
            {"    def extra(self): return first(1)": "    def extra(self): return first(1)\n    def more(self): ..."},
            {"tables.py:Act.more": "new"},
        ),
        ({"    def extra(self): return first(1)\n": ""}, {"tables.py:Act.extra": "gone"}),
    ],
)
def test_what_differs_of_a_table(changes: Mapping[str, str], differs: Mapping[str, str]) -> None:
    text = "from ...tables import FUNCTIONS, CLASSES\ndef f(x): return FUNCTIONS['first'](CLASSES['act'](x))\n"
    altered = FILES["tables.py"]
    for before, after in changes.items():
        assert before in altered
        altered = altered.replace(before, after)
    assert _differences(text, text, {**FILES, "tables.py": altered}) == differs


def test_an_import_from_elsewhere_is_new() -> None:
    old = "from ...masks import other\ndef f(x): return other(x)\n"
    new = "from ...deep import deeper as other\ndef f(x): return other(x)\n"
    assert _differences(old, new, FILES) == {"deep.py:deeper": "new"}


def _differences(old: str, new: str, files: Mapping[str, str]) -> dict[str, str]:
    """What the runtime finds of a file under another release."""
    before, after = Release({**FILES, MODEL: old}.get), Release({**files, MODEL: new}.get)
    file = before.file(MODEL)
    assert file is not None
    relied_on = file.relied_on(["f"])
    return compared(after, MODEL, {"f": relied_on["f"]}, relied_on, before.parts(file.imports(relied_on)))


def test_a_damaged_file_is_one_that_is_not_there() -> None:
    files = {**FILES, "masks.py": "def mask(:\n"}
    assert _led_to("from ...masks import mask", "def f(x): return mask(x)", files) == set()


def test_keys() -> None:
    for one in (Import("masks.py", "mask", False), Import("hooks.py", "hook", True)):
        assert Import.of(one.key) == one
    with pytest.raises(ValueError, match="is not file:name"):
        Import.of("masks.py")
