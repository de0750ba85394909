"""No tensor lands on the user's default device, or in the user's default type, by accident.

A user may call `torch.set_default_device` and `torch.set_default_dtype`; a factory that names neither then makes
tensors elsewhere than the images are, or other numbers than a file was made with.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TYPED = {"zeros", "ones", "empty", "rand", "randn", "normal", "linspace", "logspace", "eye", "full", "hann_window",
         "hamming_window", "fftfreq", "rfftfreq", "tensor", "as_tensor", "asarray"}  # fmt: skip
WHOLE = {"arange", "randint", "randperm", "triu_indices", "tril_indices"}


def factories(path: Path) -> list[str]:
    """Calls of torch's factories without a device or a type, as "file:line: call"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) not in ("torch", "torch.fft"):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        if None in given or name not in TYPED | WHOLE:  # **options are trusted
            continue
        missing = {"device"} - given
        if name in TYPED or (name == "arange" and holds_floats(node)):
            missing |= {"dtype"} - given
        if missing:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: torch.{name} without {', '.join(sorted(missing))}")
    return found


def holds_floats(node: ast.Call) -> bool:
    parts = list(ast.walk(node))
    calls = [part.func.id for part in parts if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)]
    return "float" in calls or any(isinstance(part, ast.Constant) and isinstance(part.value, float) for part in parts)


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for top in ("qa_hooks", "integrations"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            if parts[:2] != ("qa_hooks", "integrations"):
                own = parts[1] if len(parts) > 2 else path.stem
                found.setdefault(own if top == "qa_hooks" else f"integrations/{own}", []).append(path)
    return found


ROOMS = rooms()


@pytest.mark.parametrize("room", ROOMS)
def test_factories_name_their_device_and_type(room):
    found = [call for path in ROOMS[room] for call in factories(path)]
    assert not found, "\n".join(found)


def test_the_search_finds_what_it_looks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "a.py"
    path.write_text(
        "import torch\ntorch.zeros(3)\ntorch.zeros(3, device='cpu', dtype=torch.float32)\ntorch.arange(3)\n"
        "torch.tensor(x, device='cpu')\ntorch.randn(3, **options)\ntorch.arange(3, device='cpu')\n"
        "torch.fft.fftfreq(3)\ntorch.arange(3.0, device='cpu')\n"
    )
    assert [call.split(": ")[1] for call in factories(path)] == [
        "torch.zeros without device, dtype",
        "torch.arange without device",
        "torch.tensor without dtype",
        "torch.fftfreq without device, dtype",
        "torch.arange without dtype",
    ]
