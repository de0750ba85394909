"""The map of the imports: `python tests/map_imports.py [CHECKOUT]` prints rooms, arrows, circles and floors.

A room is what stands directly in `qa_hooks`: a package with everything in it, or a module. An arrow goes from a room to
another one that it imports, wherever the import stands, also inside a function. A circle is a set of rooms each of
which reaches all others. The floors are the longest chain of arrows, with a circle as one room.
`tests/unit/test_structure.py` checks the same imports against docs/architecture.md.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path


class Tree:
    """The modules of one checkout and what each imports.

    Args:
        root: the folder with `qa_hooks` and `integrations`.

    Attributes:
        modules: the files by dotted name, without `qa_hooks/__init__.py`, which may name every room.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Path] = {}
        for top, prefix in ((root / "qa_hooks", ""), (root / "integrations", "qa_hooks.")):
            for path in sorted(top.rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                if parts[:2] != ("qa_hooks", "integrations") and parts != ("qa_hooks", "__init__"):
                    self.modules[prefix + ".".join(parts).removesuffix(".__init__")] = path

    def imported(self, name: str) -> set[str]:
        """The modules of ours that a module imports; a name of a lazy face counts as the module it stands for."""
        names = set()
        for node in ast.walk(ast.parse(self.modules[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {self.behind(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        assert not any(name.split(".")[0] == "integrations" for name in names), "import qa_hooks.integrations"
        return {name for name in names if name.startswith("qa_hooks.")}

    @functools.cache  # noqa: B019 - a tree lives as long as the program
    def face(self, module: str) -> dict[str, str]:
        """What a package's lazy face hands out: the module behind each name."""
        parts = module.split(".")
        folder = self.root.joinpath(*(parts[1:] if parts[1:2] == ["integrations"] else parts))
        stub = folder / "__init__.pyi"
        if not stub.is_file():
            return {}
        nodes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        return {alias.name: f"{module}.{node.module or alias.name}" for node in nodes for alias in node.names}

    def behind(self, module: str, name: str) -> str:
        """The module that `from module import name` really needs."""
        while name in self.face(module):
            module = self.face(module)[name]
        return f"{module}.{name}" if f"{module}.{name}" in self.modules else module

    def arrows(self) -> dict[str, set[str]]:
        """Each module and the other modules that it imports."""
        return {name: self.imported(name) - {name} for name in self.modules}

    def rooms(self) -> dict[str, set[str]]:
        """Each room and the other rooms that it imports."""
        rooms: dict[str, set[str]] = {}
        for name, targets in self.arrows().items():
            own = room(name)
            rooms.setdefault(own, set()).update({room(target) for target in targets} - {own})
        return rooms


def room(module: str) -> str:
    return module.split(".")[1]


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), set()) - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of at least two nodes that reach each other."""
    reach = {node: reachable(graph, node) for node in graph}
    found = {tuple(sorted(other for other in graph if node in reach[other] and other in reach[node])) for node in graph}
    return sorted(list(circle) for circle in found if len(circle) > 1)


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """The nodes by the longest chain of arrows below them, the lowest first."""
    reach = {node: reachable(graph, node) for node in graph}

    @functools.cache
    def height(node: str) -> int:
        below = [other for other in reach[node] if node not in reach.get(other, set())]
        return 1 + max(map(height, below), default=-1)

    heights = {node: height(node) for node in graph}
    return [sorted(n for n, h in heights.items() if h == floor) for floor in range(max(heights.values()) + 1)]


def main(root: Path) -> None:
    rooms = Tree(root).rooms()
    for name, targets in sorted(rooms.items()):
        print(f"{name:14} -> {' '.join(sorted(targets))}")
    print()
    for number, floor in enumerate(floors(rooms)):
        print(f"floor {number:2}: {' '.join(floor)}")
    for circle in circles(rooms):
        print(f"circle: {' '.join(circle)}")
    arrows = sum(map(len, rooms.values()))
    counts = (len(rooms), arrows, len(circles(rooms)), len(floors(rooms)))
    print("{} rooms, {} arrows, {} circles, {} floors".format(*counts))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
