"""Which images of a folder may be compared with each other: those of one content, as their names tell it."""

from __future__ import annotations

import itertools
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

    Of several references of one name it is the one whose folders are the last folders of the content, too.

    Raises:
        ValueError: contents without a reference, or with several that fit equally well.
    """
    stems: dict[str, list[int]] = {}
    for position in range(start, len(names)):
        stems.setdefault(PurePosixPath(names[position]).stem, []).append(position)
    found = {}
    for content, members in contents.items():
        keys = [PurePosixPath(content).name, *(PurePosixPath(names[member]).stem for member in members)]
        alike = next((stems[key] for key in keys if key in stems), [])
        if not alike:
            raise ValueError(f"there is no reference named {keys[0]!r} for {names[members[0]]}")
        around = [PurePosixPath(content), *(PurePosixPath(names[member]) for member in members)]
        fits = [max(_common_end(PurePosixPath(names[position]), path) for path in around) for position in alike]
        if fits.count(max(fits)) > 1:
            raise ValueError(
                f"{names[members[0]]} could have the reference {names[alike[0]]} or {names[alike[1]]}: put the "
                "references into folders named as those of the images"
            )
        found[content] = alike[fits.index(max(fits))]
    return found


def _common_end(a: PurePosixPath, b: PurePosixPath) -> int:
    """How many last parts two paths have in common, without their suffixes."""
    ends = [[path.stem, *reversed(path.parts[:-1])] for path in (a, b)]
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))


def _grouped(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return groups
