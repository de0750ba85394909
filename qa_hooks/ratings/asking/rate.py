"""Ask somebody which of two images is better, until all is said or the command ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qa_hooks._base.checks import check_count, check_share, warn
from qa_hooks._base.files import check_writable, exclusive
from qa_hooks.images import list_images
from qa_hooks.ratings.asking.answers import AnswerFile
from qa_hooks.ratings.asking.pairing import contents_by_name, references_by_content
from qa_hooks.ratings.asking.server import AskingServer
from qa_hooks.ratings.asking.session import Pair, Session
from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.reading_preferences import read_preferences

LONGEST_NAME = 100


def rate(
    folder: str | Path,
    output: str | Path,
    *,
    rater: str = "",
    by: str = "auto",
    reference: str | Path | None = None,
    hidden: bool = False,
    pairs: str | Path | None = None,
    repeats: float = 0.1,
    count: int | None = None,
    port: int = 0,
    seed: int | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the page of questions until Ctrl-C; each answer is on disk before the next question.

    The pair is asked for next whose answer is expected to tell most. Sides are drawn at random. The file that comes out
    is read by `read_preferences`, and goes on where it was when the same command is run again.

    Args:
        folder: of the images.
        output: the CSV; several raters may write into one, after each other, or each into one of their own.
        rater: a name for the column `rater`.
        by: which images are compared: "name", "folder", "any" or "auto", see `contents_by_name`.
        reference: a folder of references, named like the contents, which stand between the two images.
        hidden: compare each image with its reference instead, without saying which is which.
        pairs: a CSV whose pairs are asked about, such as another rater's file.
        repeats: the share of the questions that are earlier pairs again, to see how often one says the same twice.
        count: stop asking after so many different pairs.
        port: of the page; 0 for one that is free.
        seed: of what is drawn.
        tell: is given the lines for the terminal, the page's address among them.

    Returns:
        How far the rater came: "answered", "total", "again" (repeats) and "same" (of these, the same answer).

    Raises:
        ValueError: no images, no pairs, references that are missing, a file or a port that is in use.
    """
    check_share("repeats", repeats, zero=True)
    if len(rater) > LONGEST_NAME or not (rater.isprintable() and rater == rater.strip()):
        raise ValueError(f"rater must be a name of at most {LONGEST_NAME} printable characters, got {rater!r}")
    if hidden and reference is None:
        raise ValueError("hidden compares with references: name their folder")
    if count is not None:
        check_count("count", count)
    check_writable(Path(output).parent, name="output")
    images, root, start = _images(Path(folder), reference)
    names = [path.relative_to(root).as_posix() for path in images]
    asked, references = _pairs(names, start, by, hidden=hidden, pairs=pairs, root=root)
    with exclusive(output):
        answers = AnswerFile(output)
        session = Session(
            names, asked, answers, rater, references=references, repeats=repeats, count=count, seed=seed
        )  # fmt: skip
        if session.unknown:
            warn(
                f"{session.unknown} answers in {output} are about pairs that are not asked about here; they stay there"
            )
        server = AskingServer(session, images, port)
        try:
            tell(
                f"{session.total} pairs of {len(asked)} contents, {session.answered} of them judged by {rater or 'you'}"
            )
            tell(f"open {server.url}")
            tell(f"answers go to {output} (its names are relative to {root}); Ctrl-C ends, the same command goes on")
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            with server.lock:  # an answer that is being written
                state = session.state()
    return {name: state[name] for name in ("answered", "total", "again", "same")}


def _images(folder: Path, reference: str | Path | None) -> tuple[list[Path], Path, int]:
    """The images, then the references; the folder that all lie in; and where the references begin."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    images = [path for path in list_images(folder) if path.is_file()]
    for name in (str(path.relative_to(folder)) for path in images):
        if not name.isprintable() or name != name.strip():
            raise ValueError(f"the name {name!r} has characters or blanks that a table cannot hold: rename it")
    root = folder.resolve()
    images = [root / path.relative_to(folder) for path in images]
    if reference is None:
        return images, root, len(images)
    if not Path(reference).is_dir():
        raise ValueError(f"reference={str(reference)!r} is no folder")
    place = Path(reference).resolve()
    images = [path for path in images if place not in path.parents]
    others = [place / path.relative_to(reference) for path in list_images(reference) if path.is_file()]
    while root not in (place, *place.parents):
        root = root.parent
    return [*images, *others], root, len(images)


def _pairs(
    names: Sequence[str], start: int, by: str, *, hidden: bool, pairs: str | Path | None, root: Path
) -> tuple[dict[str, Sequence[int] | Sequence[Pair]], dict[str, int]]:
    """What may be asked about, by content, and the references that are shown beside it."""
    asked: dict[str, Sequence[int] | Sequence[Pair]] = {}
    if pairs is not None:
        given = read_preferences(pairs)
        files = dict(zip(given.names, find_images(given.names, root), strict=True))
        place = {root / name: position for position, name in enumerate(names)}
        listed: dict[str, list[Pair]] = {}
        for pair in given:
            a, b = (place.get(file) if (file := files[name]) is not None else None for name in (pair.a, pair.b))
            if a is not None and b is not None and a != b:
                listed.setdefault(pair.content, []).append((a, b))
        if not listed:
            raise ValueError(f"none of the pairs of {pairs} are of images in {root}")
        asked.update({content: sorted(set(own)) for content, own in listed.items()})
        shown = {content: sorted({i for pair in own for i in pair}) for content, own in listed.items()}
    else:
        tested = names[:start]
        flat = start < len(names) and by == "auto" and len({name.rpartition("/")[0] for name in tested}) == 1
        _, shown = contents_by_name(tested, "name" if flat else by, least=1 if hidden else 2)
        asked.update(shown)
    if start == len(names):
        return asked, {}
    if set(shown) == {""}:
        raise ValueError("which reference belongs to which images? Pair them by name or by folder")
    references = references_by_content(shown, names, start)
    if not hidden:
        return asked, references
    if pairs is None:
        asked.update({content: [(i, references[content]) for i in own] for content, own in shown.items()})
    return asked, {}
