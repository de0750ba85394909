"""Sets of candidate ground truths on disk: one original image and K - 1 enhanced versions of it, in four layouts.

    plain     any folder of images, sub-folders included: K = 1
    folders   root/original/a.png  root/enhanced_1/a.png  root/enhanced_2/a.png ...     (another suffix will do)
    csv       original,candidate_1,...   paths relative to the CSV and below its folder; further columns are ignored
    hggt      images/0-20193/original/a.png  .../01/a_01.png ... 04/a_04.png  labels/0-20193/A/a.json  B/  C/

"hggt" is the set of "Human Guided Ground-truth Generation for Realistic Image Super-resolution" (Chen, Liang et al.,
CVPR 2023), where three annotators called each of four enhanced images Positive, Similar or Negative. The effective
label is that of the majority; three different labels make Similar.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qa_hooks._base.decoding import IMAGE_SUFFIXES
from qa_hooks._base.files import inside_folder
from qa_hooks._base.headers import parse_header
from qa_hooks.images import list_images

LAYOUTS = ("plain", "folders", "csv", "hggt")
LABELS = ("Original", "Positive", "Similar", "Negative")  # the codes of the published training code, 0..3
ANNOTATORS = ("A", "B", "C")
CANDIDATES = 4  # that they judged for each ground truth
HGGT_FOLDERS = ("original", "01", "02", "03", "04")
SHOWN = 3


class CandidateSet(NamedTuple):
    """One sample: its candidates, the original first.

    Attributes:
        key: unique in the data set: the original's path relative to the root (or the CSV), candidate folder left out.
        paths: K files; None where a candidate is missing, never the original.
        labels: K codes, positions in `LABELS` (0 is the original, 1 positive, 2 similar, 3 negative); empty when nobody
            has judged the set.
        votes: how many annotators share each effective label, 1..3; the original has 3.
    """

    key: str
    paths: tuple[Path | None, ...]
    labels: tuple[int, ...] = ()
    votes: tuple[int, ...] = ()


def list_candidates(
    root: str | Path,
    layout: str = "folders",
    *,
    names: Sequence[str] | None = None,
    labels: str | Path | None = None,
    missing: str = "raise",
) -> list[CandidateSet]:
    """List the sets of a data set, sorted by key; nothing is decoded.

    Args:
        root: a folder; for "csv" the CSV file.
        layout: "plain", "folders", "csv" or "hggt"; see above.
        names: the sub-folders of "folders", the original's first. None takes all there are: `original`, then the others
            in natural order.
        labels: the folder of "hggt"'s annotations; None looks for `labels` beside `images`, and does without.
        missing: "raise", or "allow": an enhanced image that is missing becomes None. The original is always needed.

    Raises:
        ValueError: no sets, a missing original or candidate, a key that occurs twice, a path that leaves the folder,
            a label that is none.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("original", "enhanced_1"):
        ...     (root / name).mkdir()
        ...     _ = (root / name / "a.png").write_bytes(b"")
        >>> [(s.key, [p.parent.name for p in s.paths]) for s in list_candidates(root)]
        [('a.png', ['original', 'enhanced_1'])]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if missing not in ("raise", "allow"):
        raise ValueError(f"missing must be 'raise' or 'allow', got {missing!r}")
    if names is not None and layout != "folders":
        raise ValueError(f"names= belongs to layout 'folders', not to {layout!r}")
    if labels is not None and layout != "hggt":
        raise ValueError(f"labels= belongs to layout 'hggt', not to {layout!r}")
    root = Path(root)
    if layout == "plain":
        sets = [CandidateSet(path.relative_to(root).as_posix(), (path,)) for path in list_images(root)]
    elif layout == "folders":
        sets = _list_folders(root, names)
    elif layout == "csv":
        sets = _list_csv(root)
    else:
        sets = _list_hggt(root, None if labels is None else Path(labels))
    check_keys(sets, root, missing)
    return sorted(sets, key=lambda candidates: candidates.key)


def majority_labels(annotations: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Effective labels and votes of one set from three annotators.

    Args:
        annotations: three times K - 1 of "Positive", "Similar", "Negative", in any case.

    Returns:
        K codes and K votes, those of the original (0 and 3) first. Three different labels: Similar with one vote.

    Example:
        >>> majority_labels([["Positive", "Negative"], ["Positive", "Similar"], ["Similar", "Positive"]])
        ((0, 1, 2), (3, 2, 1))
    """
    if len(annotations) != len(ANNOTATORS) or len({len(given) for given in annotations}) != 1:
        raise ValueError(f"expected three annotators with as many labels each, got {[len(a) for a in annotations]}")
    codes = {name.lower(): code for code, name in enumerate(LABELS) if code}
    labels, votes = [0], [len(ANNOTATORS)]
    for given in zip(*annotations, strict=True):
        unknown = [label for label in given if not isinstance(label, str) or label.strip().lower() not in codes]
        if unknown:
            raise ValueError(f"label {unknown[0]!r} is none of {', '.join(LABELS[1:])}")
        label, count = Counter(codes[label.strip().lower()] for label in given).most_common(1)[0]
        labels.append(label if count > 1 else LABELS.index("Similar"))
        votes.append(count)
    return tuple(labels), tuple(votes)


def read_annotation(path: str | Path) -> list[str]:
    """The labels of `Picture_2` ... in one annotator's JSON of an HGGT set; `ValueError` names the file."""
    try:
        content = parse_header(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        pictures = {re.sub(r"[^a-z0-9]", "", name.lower()): value for name, value in content.items()}
        labels: list[str] = []
        for number in range(2, CANDIDATES + 2):
            picture = pictures.get(f"picture{number}")
            if not isinstance(picture, dict):
                raise ValueError(f"it has no Picture_{number}")
            labels.append(str({name.lower(): value for name, value in picture.items()}.get("label")))
        majority_labels([labels] * len(ANNOTATORS))
    except (OSError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{path} is not an annotation of HGGT: {error}") from error
    return labels


def _list_folders(root: Path, names: Sequence[str] | None) -> list[CandidateSet]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    if names is None:
        found = sorted((p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."), key=_natural)
        if "original" not in found:
            raise ValueError(f"{root} has no folder 'original', it has {found}: name the folders, the original's first")
        names = ["original", *(name for name in found if name != "original")]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names must be different folders, the original's first, got {list(names)}")
    originals = {path.relative_to(root / names[0]).as_posix(): path for path in list_images(root / names[0])}
    keys = {str(PurePosixPath(name).with_suffix("")): name for name in originals}
    if len(keys) < len(originals):
        twice = next(name for name in originals if keys[str(PurePosixPath(name).with_suffix(""))] != name)
        raise ValueError(f"{root / names[0]} holds {twice!r} twice, with different suffixes")
    found_paths: dict[str, list[Path | None]] = {name: [path] for name, path in originals.items()}
    for number, name in enumerate(names[1:], 1):
        for candidates in found_paths.values():
            candidates.append(None)
        for path in list_images(root / name):
            relative = path.relative_to(root / name)
            key = keys.get(relative.with_suffix("").as_posix())
            if key is None:
                raise ValueError(f"{path} has no original of the same name in {root / names[0]}")
            if found_paths[key][number] is not None:
                raise ValueError(f"{root / name} holds {key!r} twice, with different suffixes")
            found_paths[key][number] = path
    return [CandidateSet(key, tuple(paths)) for key, paths in found_paths.items()]


def _list_csv(path: Path) -> list[CandidateSet]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: layout 'csv' takes the CSV itself")
    sets = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            header = list(reader.fieldnames or ())
            columns = ["original", *sorted((c for c in header if re.fullmatch(r"candidate_\d+", c)), key=_natural)]
            if "original" not in header or columns[1:] != [f"candidate_{i}" for i in range(1, len(columns))]:
                raise ValueError(f"its header must be original,candidate_1,candidate_2,..., it is {','.join(header)!r}")
            for row in reader:
                cells = [(row[column] or "").strip() for column in columns]
                try:
                    original, *others = (inside_folder(cell, path.parent) if cell else None for cell in cells)
                    if original is None:
                        raise ValueError("no original")
                except ValueError as error:
                    raise ValueError(f"line {reader.line_num}: {error}") from error
                sets.append(CandidateSet(original.relative_to(path.parent).as_posix(), (original, *others)))
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of candidates: {error}") from error
    return sets


def _list_hggt(root: Path, labels: Path | None) -> list[CandidateSet]:
    """Each folder `original` with its neighbours is a group; there may be one (as published) or many."""
    images = root / "images" if (root / "images").is_dir() else root
    if labels is None and (root / "labels").is_dir():
        labels = root / "labels"
    originals = [path for path in list_images(images) if path.parent.name.lower() == HGGT_FOLDERS[0]]
    if not originals:
        raise ValueError(f"{images} has no images in a folder 'original'; expected .../original, 01, 02, 03, 04")
    siblings = {folder.parent: _files_of_group(folder.parent) for folder in {path.parent for path in originals}}
    sets = []
    for path in originals:
        group = path.parent.parent
        enhanced = [siblings[group].get((folder, path.stem)) for folder in HGGT_FOLDERS[1:]]
        relative = group.relative_to(images)
        judged = _annotations(labels / relative, path.stem) if labels is not None else ((), ())
        sets.append(CandidateSet((relative / path.name).as_posix(), (path, *enhanced), *judged))
    return sets


def _files_of_group(group: Path) -> dict[tuple[str, str], Path]:
    """(candidate folder, stem without the folder's suffix `_01`) -> file."""
    files = {}
    for folder in HGGT_FOLDERS[1:]:
        for path in sorted((group / folder).iterdir()) if (group / folder).is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files[folder, path.stem.removesuffix(f"_{folder}")] = path
    return files


def _annotations(folder: Path, stem: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    files = [folder / annotator / f"{stem}.json" for annotator in ANNOTATORS]
    there = [path for path in files if path.is_file()]
    if not there:
        return (), ()
    if len(there) < len(files):
        lacking = next(path for path in files if path not in there)
        raise ValueError(f"{lacking} is missing: an effective label needs all of {', '.join(ANNOTATORS)}")
    return majority_labels([read_annotation(path) for path in files])


def check_keys(sets: Sequence[CandidateSet], root: object, missing: str) -> None:
    """`ValueError` for no sets, for keys that repeat, and for missing candidates unless they are allowed."""
    if not sets:
        raise ValueError(f"{root} holds no sets of candidates")
    twice = [key for key, count in Counter(candidates.key for candidates in sets).items() if count > 1]
    if twice:
        raise ValueError(f"{root} has {len(twice)} keys more than once: {some(twice)}")
    lacking = [f"{s.key} (candidate {s.paths.index(None)})" for s in sets if None in s.paths]
    if lacking and missing == "raise":
        raise ValueError(
            f"{len(lacking)} of {len(sets)} sets in {root} lack a candidate: {some(lacking)}; complete them, or pass "
            "missing='allow' to go without"
        )


def some(names: Iterable[str]) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _natural(name: str) -> list[tuple[int, str]]:
    """enhanced_2 stands before enhanced_10."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
