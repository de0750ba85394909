"""Hooks of MkDocs: a reference page for every room, made from its public names, and links that leave docs/.

`Examples` is an extension of Griffe, which reads the docstrings: their "Example:" is its "Examples:".

`make docs` builds the site into build/site, with nothing from another host.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("callbacks", "losses", "penalties", "weighting", "scorers", "rewards", "ratings", "data", "evaluation",
         "folders", "features", "functional", "images", "writers", "integrations.accelerate", "integrations.diffusers",
         "integrations.lightning", "integrations.peft", "integrations.ray", "integrations.sr", "integrations.stylegan",
         "integrations.transformers")  # fmt: skip


def public_names(room: str) -> list[str]:
    """The names that a room hands out: of its stub, or what its module defines."""
    path = ROOT / "qa_hooks" / room.replace(".", "/")
    stub = path / "__init__.pyi"
    if stub.exists():
        imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        return [f"{room}.{alias.asname or alias.name}" for node in imports if node.module for alias in node.names]
    module = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    nodes = ast.parse(module.read_text()).body
    defined = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [f"{room}.{name}" for name in defined if not name.startswith("_")]


def reference_page(room: str) -> str:
    """The page of a room, in the words of mkdocstrings."""
    entries = "\n".join(f"::: qa_hooks.{name}\n" for name in public_names(room))
    return f"# qa_hooks.{room}\n\n{entries}"


def on_config(config: Any) -> Any:
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [{f"qa_hooks.{room}": f"reference/{room}.md"} for room in ROOMS]
    return config


def on_files(files: Files, config: Any) -> Files:
    for room in ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content=reference_page(room)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to what is not in docs/ (examples, CONTRIBUTING.md) become the name of the file."""

    def plain(match: re.Match[str]) -> str:
        target = (ROOT / "docs" / page.file.src_path).parent / match[2].partition("#")[0]
        inside = target.resolve().is_relative_to(ROOT / "docs")
        return match[0] if inside or ":" in match[2] else f"`{match[1]}`"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", plain, markdown)


class Examples(griffe.Extension):
    """Sessions under "Example:" are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
