"""Questions, answers and the page's server, without a browser."""

from __future__ import annotations

import csv
import http.client
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qa_hooks.ratings import Preference, Preferences, read_preferences
from qa_hooks.ratings.asking.answers import COLUMNS, AnswerFile, self_agreement
from qa_hooks.ratings.asking.choosing import Answer, gains, posterior
from qa_hooks.ratings.asking.pairing import contents_by_name, references_by_content
from qa_hooks.ratings.asking.rate import _images, _pairs, rate
from qa_hooks.ratings.asking.server import AskingServer, picture
from qa_hooks.ratings.asking.session import Session

NAMES = [f"m{method}/s{scene}.png" for method in range(3) for scene in range(4)]
GROUPS = {f"s{scene}": [scene, 4 + scene, 8 + scene] for scene in range(4)}


def session(path: Path, **options) -> Session:
    given = {"rater": "anna", "repeats": 0.0, "seed": 0, **options}
    return Session(NAMES, given.pop("pairs", GROUPS), AnswerFile(path), given.pop("rater"), **given)


def answer_all(asked: Session, choice=lambda question: "left", most: int = 1000) -> int:
    count = 0
    while asked.question is not None and count < most:
        assert asked.answer(asked.question.number, choice(asked.question))
        count += 1
    return count


def test_the_posterior_is_the_mode_that_scipy_finds():
    from scipy.optimize import minimize

    answers = [Answer(0, 1, 1.0), Answer(1, 2, 1.0), Answer(0, 2, 0.0), Answer(2, 3, -1.0)]

    def objective(s):
        total = 0.5 * float((s**2).sum())
        for a, b, better in answers:
            total += (1 + better) / 2 * np.log1p(np.exp(s[b] - s[a])) + (1 - better) / 2 * np.log1p(np.exp(s[a] - s[b]))
        return total

    mean, covariance = posterior(4, answers)
    np.testing.assert_allclose(mean, minimize(objective, np.zeros(4), tol=1e-12).x, atol=1e-5)
    step, hessian = 1e-4, np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            e, f = np.eye(4)[i] * step, np.eye(4)[j] * step
            hessian[i, j] = (
                objective(mean + e + f) - objective(mean + e) - objective(mean + f) + objective(mean)
            ) / step**2
    np.testing.assert_allclose(covariance, np.linalg.inv(hessian), atol=1e-2)


def test_what_is_known_tells_less():
    mean, covariance = posterior(3, [Answer(0, 1, 1.0)] * 6)
    known, open_ = gains(mean, covariance, [0, 0], [1, 2])
    assert known < open_


def test_choosing_beats_chance_at_ordering_images():
    """Twelve images, thirty answers: the chosen pairs order them better than pairs by chance, over many draws."""
    random, scores = np.random.default_rng(0), {"chosen": [], "chance": []}
    pairs = [(a, b) for a in range(12) for b in range(a + 1, 12)]
    for _ in range(40):
        truth = random.normal(0, 2, 12)
        for way in scores:
            answers, left = [], list(pairs)
            for _ in range(30):
                if way == "chosen":
                    told = gains(*posterior(12, answers), *zip(*left, strict=True))
                    a, b = left.pop(int(told.argmax()))
                else:
                    a, b = left.pop(int(random.integers(len(left))))
                answers.append(Answer(a, b, 1.0 if random.random() < 1 / (1 + np.exp(truth[b] - truth[a])) else -1.0))
            mean, _ = posterior(12, answers)
            scores[way].append(np.corrcoef(mean.argsort().argsort(), truth.argsort().argsort())[0, 1])
    assert np.mean(scores["chosen"]) > np.mean(scores["chance"]) + 0.01


def test_every_pair_is_asked_once_and_kept_as_it_was_said(tmp_path):
    path = tmp_path / "pairs.csv"
    asked = session(path)
    assert asked.total == 12
    count = answer_all(
        asked, lambda q: "left" if (q.a < q.b) == q.a_is_left else "right"
    )  # the earlier method is better
    assert count == 12
    found = read_preferences(path)
    assert {(p.a, p.b) for p in found} == {(NAMES[a], NAMES[b]) for g in GROUPS.values() for a in g for b in g if a < b}
    assert all(p.better == 1 for p in found)
    assert {p.content for p in found} == set(GROUPS)
    assert asked.question is None
    assert asked.state()["answered"] == 12


def test_it_goes_on_where_it_was_and_other_raters_begin_anew(tmp_path):
    path = tmp_path / "pairs.csv"
    answer_all(session(path), most=5)
    again = session(path, seed=7)
    assert again.answered == 5
    assert answer_all(again) == 7
    other = session(path, rater="ben")
    assert other.answered == 0
    assert answer_all(other, lambda q: "same") == 12
    assert len(read_preferences(path)) == 24


def test_an_old_question_is_not_answered_again(tmp_path):
    asked = session(tmp_path / "pairs.csv")
    number = asked.question.number
    assert asked.answer(number, "left")
    assert not asked.answer(number, "right")
    assert len(read_preferences(tmp_path / "pairs.csv")) == 1
    with pytest.raises(ValueError, match="choice must be one of"):
        asked.answer(asked.question.number, "up")


def test_an_answer_is_taken_back(tmp_path):
    path = tmp_path / "pairs.csv"
    answer_all(session(path), most=2)
    asked = session(path)
    assert not asked.take_back()  # what an earlier run has said stays
    pair = asked.question[1:3]
    asked.answer(asked.question.number, "left")
    assert asked.take_back()
    assert asked.question[1:3] == pair
    assert len(read_preferences(path)) == 2
    assert answer_all(asked) == 10


def test_repeats_come_later_and_measure_self_agreement(tmp_path):
    path = tmp_path / "pairs.csv"
    asked = session(path, repeats=0.4, seed=3)
    answer_all(asked, lambda q: "left" if q.a_is_left else "right")
    state = asked.state()
    assert state["again"] > 0
    assert state["same"] == state["again"]
    rows = [(p.a, p.b) for p in read_preferences(path)]
    assert all(pair not in rows[max(0, i - 5) : i] for i, pair in enumerate(rows))
    assert self_agreement(Preferences([Preference("a", "b", 1.0), Preference("a", "b", 0.0)], "pairs")) == (0, 1)


def test_sides_are_drawn(tmp_path):
    asked, sides = session(tmp_path / "pairs.csv", seed=1), []
    while asked.question is not None:
        sides.append(asked.question.a_is_left)
        asked.answer(asked.question.number, "same")
    assert 2 < sum(sides) < 10


def test_count_ends_it_and_many_images_are_no_trouble(tmp_path):
    names = [f"{i}.png" for i in range(3000)]
    asked = Session(names, {"": range(3000)}, AnswerFile(tmp_path / "pairs.csv"), "", repeats=0, count=4, seed=0)
    assert answer_all(asked) == 4
    assert asked.total == 4


def test_a_row_that_was_not_written_whole_is_cut_off(tmp_path):
    path = tmp_path / "pairs.csv"
    answer_all(session(path), most=3)
    whole = path.read_bytes()
    path.write_bytes(whole + b"m0/s0.png,m1/s0.png,1,s")
    with pytest.warns(UserWarning, match="last row was not whole"):
        assert len(AnswerFile(path).rows) == 3
    assert path.read_bytes() == whole


def test_killed_in_the_middle_of_writing_nothing_is_lost(tmp_path):
    """A process that answers without end is killed: every row is whole but at most the last."""
    path = tmp_path / "pairs.csv"
    code = (
        "from qa_hooks.ratings.asking.answers import AnswerFile; from qa_hooks.ratings import Preference\n"
        f"file = AnswerFile({str(path)!r})\n"
        "for i in range(10**6):\n"
        "    file.add(Preference(f'a{i}.png', f'b{i}.png', 1.0), left='a', seconds=1)\n"
        "    print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(50)]
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    told = int((rest or said)[-1].strip())
    assert len(AnswerFile(path).rows) >= told + 1  # all of which the writer was told that it is kept


def test_names_with_commas_and_quotes_come_back(tmp_path):
    file = AnswerFile(tmp_path / "pairs.csv")
    row = Preference('a, "b".png', "c.png", -1.0, "a scene, with commas", "anna")
    file.add(row, left="a", seconds=0.5)
    assert list(read_preferences(tmp_path / "pairs.csv")) == [row]
    assert next(csv.reader((tmp_path / "pairs.csv").open())) == list(COLUMNS)


def test_contents_by_name():
    assert contents_by_name(NAMES)[0] == "name"
    assert contents_by_name(["x/1.png", "x/2.png", "y/3.png", "y/4.png"]) == ("folder", {"x": [0, 1], "y": [2, 3]})
    assert contents_by_name(["1.png", "2.png"]) == ("any", {"": [0, 1]})
    with pytest.raises(ValueError, match="no two of these 1 images"):
        contents_by_name(["1.png"])
    with pytest.raises(ValueError, match="pair by one of"):
        contents_by_name(NAMES, "colour")
    assert references_by_content({"s1": [0]}, ["m/s1.png", "ref/s1.jpg"], 1) == {"s1": 1}
    two = ["cats/1.png", "dogs/1.png", "ref/dogs/1.jpg", "ref/cats/1.jpg"]
    assert references_by_content({"cats": [0], "dogs": [1]}, two, 2) == {"cats": 3, "dogs": 2}
    with pytest.raises(ValueError, match=r"m/1\.png could have the reference ref/dogs/1\.jpg or ref/cats/1\.jpg"):
        references_by_content({"1": [0]}, ["m/1.png", "x/1.png", *two[2:]], 2)
    with pytest.raises(ValueError, match="no reference named 's2'"):
        references_by_content({"s2": [0]}, ["m/s2.png", "ref/s1.jpg"], 1)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in [*NAMES, "references/s0.png", "references/s1.png", "references/s2.png", "references/s3.png"]:
        path = tmp_path / ("images" if name.startswith("m") else ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["two\nlines.png", " blank.png"])
def test_names_that_a_table_cannot_hold_are_refused(folder, name):
    Image.new("RGB", (8, 8)).save(folder / name)
    with pytest.raises(ValueError, match="rename it"):
        _images(folder, None)


def test_references_are_shown_or_compared(folder):
    images, root, start = _images(folder, folder.parent / "references")
    names = [path.relative_to(root).as_posix() for path in images]
    assert (root, start, names[0], names[12]) == (folder.parent, 12, "images/m0/s0.png", "references/s0.png")
    asked, references = _pairs(names, start, "auto", hidden=False, pairs=None, root=root)
    assert set(asked) == set(references) == {"s0", "s1", "s2", "s3"}
    asked, references = _pairs(names, start, "auto", hidden=True, pairs=None, root=root)
    assert references == {}
    assert asked["s1"] == [(1, 13), (5, 13), (9, 13)]


def test_another_raters_pairs_are_asked_about(folder, tmp_path):
    path = tmp_path / "anna.csv"
    path.write_text(
        "image_a,image_b,label,content\nm0/s0.png,m1/s0.png,1,s0\nm2/s3.png,m1/s3.png,0,s3\nx.png,y.png,1,z\n"
    )
    images, root, start = _images(folder, None)
    names = [p.relative_to(root).as_posix() for p in images]
    asked, _ = _pairs(names, start, "auto", hidden=False, pairs=path, root=root)
    assert asked == {"s0": [(0, 4)], "s3": [(11, 7)]}
    assert answer_all(Session(names, asked, AnswerFile(tmp_path / "ben.csv"), "ben", repeats=0)) == 2


class Served:
    """A server in a thread, and requests to it."""

    def __init__(self, asked: Session, files: list[Path]) -> None:
        self.server = AskingServer(asked, files)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.token = self.server.token

    def ask(self, path: str, body=None, method=None, **headers) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method or ("GET" if data is None else "POST"), path, data, {**given, **headers})
        reply = connection.getresponse()
        return reply.status, reply.read()


@pytest.fixture
def served(folder, tmp_path):
    images, _, _ = _images(folder, None)
    made = Served(session(tmp_path / "pairs.csv"), images)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_page_and_its_answers(served, tmp_path):
    token = served.token
    status, page = served.ask(f"/{token}/")
    assert status == 200
    assert b"Which image is better?" in page
    assert b"http" not in page.replace(b"http-equiv", b"")  # nothing from elsewhere
    state = json.loads(served.ask(f"/{token}/state")[1])
    assert state["total"] == 12
    status, image = served.ask(f"/{token}/image/{state['question']['left']}")
    assert (status, image[:4]) == (200, b"\x89PNG")
    status, reply = served.ask(f"/{token}/answer", {"question": state["question"]["number"], "choice": "left"})
    assert status == 200
    assert json.loads(reply)["kept"] is True
    assert len(read_preferences(tmp_path / "pairs.csv")) == 1
    status, reply = served.ask(f"/{token}/answer", {"question": state["question"]["number"], "choice": "left"})
    assert json.loads(reply)["kept"] is False
    assert json.loads(served.ask(f"/{token}/back", {})[1])["kept"] is True


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil:1"])
def test_another_host_is_refused(served, host):
    assert served.ask(f"/{served.token}/", Host=host)[0] == 403
    assert served.ask(f"/{served.token}/", Host="localhost:9999")[0] == 200  # a tunnel


def test_another_page_is_refused(served):
    number = json.loads(served.ask(f"/{served.token}/state")[1])["question"]["number"]
    body = {"question": number, "choice": "left"}
    assert served.ask(f"/{served.token}/answer", body, Origin="http://evil.example")[0] == 403
    assert served.ask(f"/{served.token}/answer", body, Origin="null")[0] == 403
    assert served.ask(f"/{served.token}/answer", json.dumps(body).encode(), **{"Content-Type": "text/plain"})[0] == 400


@pytest.mark.parametrize("path", ["/", "/state", "/wrong/", "/wrong/image/0", "//", "/%00/"])
def test_without_the_token_nothing_is_served(served, path):
    assert served.ask(path)[0] == 403


@pytest.mark.parametrize(
    "place",
    ["../pairs.csv", "image/../../pairs.csv", "image/m0/s0.png", "image/-1", "image/12", "image/1e1", "image/%30",
     "image/", "image/0/", "page.html", "image/99999999999999999999"],
)  # fmt: skip
def test_no_path_reaches_the_disk(served, place):
    assert served.ask(f"/{served.token}/{place}")[0] == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"question": 1}', b'{"question": 1, "choice": "up"}', b"x" * 5000]
)
def test_bad_answers_are_refused_and_change_nothing(served, body, tmp_path):
    assert served.ask(f"/{served.token}/answer", body)[0] == 400
    assert served.ask(f"/{served.token}/state")[0] == 200
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 1


def test_a_file_that_has_gone_is_an_error_of_that_image_only(served, folder):
    (folder / NAMES[0]).unlink()
    assert served.ask(f"/{served.token}/image/0")[0] == 500
    assert served.ask(f"/{served.token}/image/1")[0] == 200


def test_a_taken_port_is_told(served, tmp_path):
    port = served.server.server_port
    with pytest.raises(ValueError, match=f"port {port} cannot be used"):
        AskingServer(session(tmp_path / "other.csv"), [], port)
    with pytest.raises(ValueError, match="port 99999999 cannot be used"):
        AskingServer(session(tmp_path / "other.csv"), [], 99999999)


def test_images_that_browsers_lack_become_png(tmp_path):
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.tif")
    body, kind = picture(tmp_path / "grey.tif")
    assert (body[:4], kind) == (b"\x89PNG", "image/png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 1.0}, "repeats must be a share"),
        ({"rater": "a\nb"}, "rater must be a name"),
        ({"hidden": True}, "name their folder"),
        ({"count": 0}, "count must be a whole number"),
        ({"reference": "nowhere"}, "is no folder"),
        ({"pairs": "nowhere.csv"}, "does not exist"),
        ({"by": "folder", "reference": "images"}, "."),
    ],
)
def test_what_cannot_be_asked_is_refused(folder, tmp_path, options, message):
    if options.get("reference") == "images":
        options["reference"] = folder
    with pytest.raises(ValueError, match=message):
        rate(folder, tmp_path / "pairs.csv", **options)


def test_two_commands_do_not_write_one_file(folder, tmp_path):
    from qa_hooks._base.files import exclusive

    with exclusive(tmp_path / "pairs.csv"), pytest.raises(ValueError, match="another run is at work"):
        rate(folder, tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    "data",
    [b"file,stars\na.png,4\nb.png,2", b'[{"prompt": "x"}]', b"\x89PNG\r\n", b"image_a,image_b,label\na,b,1"],
    ids=["ratings", "json", "png", "pairs"],
)
def test_a_file_of_another_kind_is_left_as_it_is(tmp_path, data):
    path = tmp_path / "mine.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no file of answers, and is left as it is"):
        AnswerFile(path)
    assert path.read_bytes() == data


def test_a_whole_last_row_without_its_line_end_is_kept(tmp_path):
    """As an editor leaves it."""
    path = tmp_path / "pairs.csv"
    path.write_text(",".join(COLUMNS) + "\na.png,b.png,1,c,anna,a,2.00\nb.png,c.png,-1,c,anna,b,1.50")
    assert [row.better for row in AnswerFile(path).rows] == [1.0, -1.0]
    assert path.read_text().endswith("1.50\n")
