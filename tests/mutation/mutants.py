"""Draws small faults in Python source, with a seed: what a suite of tests should notice.

    flip       < becomes >=, == becomes !=, and so on
    boundary   < becomes <=, >= becomes >, and so on
    negate     the condition of an `if`, a `while` or a conditional expression is negated; `and` becomes `or`
    constant   a number moves by one, or doubles when it is no integer; True becomes False
    arithmetic + becomes -, * becomes /, ** becomes *
    remove     a statement that calls or assigns to a part of something is left out
    swap       the first two positional arguments of a call change places

Left alone are docstrings, annotations, imports, `__all__`, messages (what stands inside `raise`, `warn` and `print`),
how an object prints itself, and the arguments of functions such as `min`, whose order changes nothing.
"""

from __future__ import annotations

import ast
import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLIPPED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.MatMult: ast.Mult,
}  # fmt: skip
SILENT_CALLS = {"warn", "print", "check_writable"}
UNORDERED = {"min", "max", "minimum", "maximum", "equal", "allclose", "isclose", "lcm", "gcd", "zip"}
SILENT_FUNCTIONS = {"__repr__", "extra_repr", "__str__"}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        path: of the file, relative to the root.
        line, column: where it stands in the original.
        kind: see above.
        before, after: the expression or statement, as source.
        source: the whole file with the fault.
    """

    path: str
    line: int
    column: int
    kind: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.kind}: {self.before} -> {self.after}"


def mutants_of(root: Path, path: Path) -> Iterator[Mutant]:
    """Every fault of a file, in its order."""
    source = path.read_text()
    tree = ast.parse(source)
    skipped = _skipped(tree)
    for node in ast.walk(tree):
        if id(node) not in skipped:
            for kind, new in _faults(node):
                yield _planted(path.relative_to(root).as_posix(), source, kind, node, new)


def draw(root: Path, files: list[Path], count: int, seed: int) -> list[Mutant]:
    """`count` different faults of the files, of each kind as many as of the others while there are any."""
    random_ = random.Random(seed)
    kinds: dict[str, list[Mutant]] = {}
    for mutant in sorted((m for path in files for m in mutants_of(root, path)), key=lambda mutant: mutant.key):
        kinds.setdefault(mutant.kind, []).append(mutant)
    for mutants in kinds.values():
        random_.shuffle(mutants)
    turns = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return [mutant for turn in turns for mutant in turn if mutant is not None][:count]


def _faults(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind, table in (("flip", FLIPPED), ("boundary", BOUNDARY)):
            other = table.get(type(node.ops[0]))
            if other is not None:
                new = copy.deepcopy(node)
                new.ops = [other()]
                yield kind, new
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER and not _is_text(node):
        new_operation = copy.deepcopy(node)
        new_operation.op = OTHER[type(node.op)]()
        yield "arithmetic", new_operation
    elif isinstance(node, ast.BoolOp):
        joined = copy.deepcopy(node)
        joined.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "negate", joined
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare):
        negated = copy.deepcopy(node)
        negated.test = ast.UnaryOp(ast.Not(), negated.test)
        yield "negate", negated
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", ast.Constant(node.value + 1 if isinstance(node.value, int) else (node.value * 2 or 1.0))
    elif isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        if ast.dump(node.args[0]) != ast.dump(node.args[1]) and _name(node.func) not in UNORDERED:
            swapped = copy.deepcopy(node)
            swapped.args[:2] = swapped.args[1::-1]
            yield "swap", swapped
    elif (
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or isinstance(node, ast.AugAssign)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript))
    ):
        yield "remove", None


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _skipped(tree: ast.Module) -> set[int]:
    """The nodes, by identity, that are left alone."""
    roots = [node for node in ast.walk(tree) if _is_left_alone(node)]
    roots += [
        part
        for node in ast.walk(tree)
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if isinstance(part, ast.AST)
    ]
    return {id(inner) for root in roots for inner in ast.walk(root)}


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        node = node.value  # with the statement around it
    if isinstance(node, ast.FunctionDef):
        return node.name in SILENT_FUNCTIONS
    if isinstance(node, ast.Assign):
        return any(_name(target) == "__all__" for target in node.targets)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.Raise | ast.ImportFrom | ast.Import) or (
        isinstance(node, ast.Call) and _name(node.func) in SILENT_CALLS
    )


def _name(node: ast.AST) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _planted(path: str, source: str, kind: str, node: ast.AST, new: ast.AST | None) -> Mutant:
    """The file with the fault in it; nothing else of it changes, not even the lines."""
    place: Any = node.test if isinstance(node, ast.If | ast.While) else node
    raw = source.encode()
    starts = [0, *itertools.accumulate(len(line) for line in raw.splitlines(keepends=True))]
    begin = starts[place.lineno - 1] + place.col_offset
    end = starts[place.end_lineno - 1] + place.end_col_offset
    before = raw[begin:end].decode()
    if place is not node:
        after = f"not ({before})"
    elif new is None:
        after = "pass"
    else:
        after = f"({ast.unparse(ast.fix_missing_locations(new))})"
    changed = (raw[:begin] + after.encode() + raw[end:]).decode()
    short = " ".join(before.split()), " ".join(after.split())
    return Mutant(path, place.lineno, place.col_offset, kind, *short, changed)
