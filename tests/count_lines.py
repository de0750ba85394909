"""Lines of code of the package, without blanks, comments and docstrings: `python tests/count_lines.py [CHECKOUT]`.

Every file is first formatted alike (ruff, 120 columns), so that a tree of another style counts the same.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

FORMAT = ["ruff", "format", "--isolated", "--line-length", "120", "--stdin-filename", "x.py", "-"]


def code_lines(source: str) -> int:
    """Lines that hold a token other than a comment, outside docstrings."""
    tree = ast.parse(source)
    documented = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = set()
    for node in documented:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in skipped for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - docstrings)


def count(root: Path) -> Counter[str]:
    """Code lines by room."""
    found: Counter[str] = Counter()
    for top in ("qa_hooks", "integrations"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[:2] != ("qa_hooks", "integrations"):
                formatted = subprocess.run(FORMAT, input=path.read_bytes(), capture_output=True, check=True).stdout
                room = "/".join(parts[:2]) if len(parts) > 2 else top
                found[room] += code_lines(formatted.decode())
    return found


if __name__ == "__main__":
    lines = count(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    for room, number in sorted(lines.items()):
        print(f"{number:6}  {room}")
    print(f"{sum(lines.values()):6}  in all")
