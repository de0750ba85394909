"""Which images of a folder may be compared with each other: those of one content, as their names tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

WAYS = ("auto", "name", "folder", "any")


def contents_by_name(names: Sequence[str], way: str = "auto", *, least: int = 2) -> tuple[str, dict[str, list[int]]]:
    """The images of each content.

    Args:
        names: relative to their folder, with slashes.
        way: "name": files of one name in different sub-folders (one folder a method) show the same; "folder": the files
            of one sub-folder do (one folder a scene or a prompt); "any": all images are compared with all; "auto": by
            name where most names occur in several folders, by folder where there are several, any otherwise.
        least: contents of fewer images are left out.

    Returns:
        The way that was taken, and positions in `names` by content.

    Raises:
        ValueError: an unknown way, or no two images that could be compared.

    Example:
        >>> contents_by_name(["a/1.png", "b/1.png", "a/2.png", "b/2.png"])
        ('name', {'1': [0, 1], '2': [2, 3]})
    """
    if way not in WAYS:
        raise ValueError(f"pair by one of {', '.join(WAYS)}, got {way!r}")
    paths = [PurePosixPath(name) for name in names]
    by_name, by_folder = _grouped([path.stem for path in paths]), _grouped([str(path.parent) for path in paths])
    if way == "auto":
        shared = sum(len(group) for group in by_name.values() if len(group) > 1)
        way = "name" if 2 * shared > len(names) else "folder" if len(by_folder) > 1 else "any"
    groups = {"name": by_name, "folder": by_folder, "any": {"": list(range(len(names)))}}[way]
    found = {content: group for content, group in groups.items() if len(group) >= least}
    if not found:
        raise ValueError(f"no two of these {len(names)} images have one content (by {way}): another way of pairing?")
    return way, found


def references_by_content(contents: Mapping[str, Sequence[int]], names: Sequence[str], start: int) -> dict[str, int]:
    """The reference of each content: the image of its name, or of its last folder's name, among `names[start:]`.

    Raises:
        ValueError: contents without a reference.
    """
    stems = {PurePosixPath(name).stem: position for position, name in enumerate(names) if position >= start}
    found = {}
    for content, members in contents.items():
        keys = [PurePosixPath(content).name, *(PurePosixPath(names[member]).stem for member in members)]
        position = next((stems[key] for key in keys if key in stems), None)
        if position is None:
            raise ValueError(f"there is no reference named {keys[0]!r} for {names[members[0]]}")
        found[content] = position
    return found


def _grouped(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return groups
