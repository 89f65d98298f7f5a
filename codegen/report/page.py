"""The page's text: data, style and script in one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent


def render(data: Mapping[str, Any]) -> str:
    """One HTML document. The same data gives the same bytes."""
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    page = environment.get_template("page.html.jinja").render(
        release=data["release"],
        before=data["before"],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=island(data),
    )
    return page + "\n"


def island(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside ``<script>``: what could end the element or begin a comment there is escaped."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _hash(text: str) -> str:
    """What the page's policy lets run: exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
