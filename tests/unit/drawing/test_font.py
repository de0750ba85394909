from __future__ import annotations

import builtins

import pytest

from qa_hooks.drawing.font import load_font


@pytest.fixture(params=[True, False], ids=["matplotlib", "pillow"])
def font(request, monkeypatch):
    if not request.param:
        real = builtins.__import__

        def without(name, *rest):
            if name.split(".")[0] == "matplotlib":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
    load_font.cache_clear()
    yield load_font(13)
    load_font.cache_clear()


def test_it_is_no_bitmap(font):
    from PIL import ImageFont

    assert isinstance(font.face, ImageFont.FreeTypeFont)


def test_only_letters_that_the_font_has(font):
    plain = font.plain("img\n世界\U0001f600 ok\0")
    assert plain.startswith("img ")
    assert "?" in plain
    assert plain.rstrip("?").endswith("ok")
    assert all(ord(letter) in font.known for letter in plain)


def test_both_ends_of_a_long_name_are_shown(font):
    short = font.cut("img_00000000000000000000000001_SRF_4_HR.png", 90)
    assert font.width(short) <= 90
    assert short.startswith("img")
    assert short.endswith(".png")
    assert font.cut("short", 90) == "short"
    assert font.cut("anything", 0) == ""


def test_lines_fit_and_lose_nothing(font):
    text = "kept: 5 of 9 by a_very_long_name_of_a_scorer_without_any_space (lower is better)"
    lines = font.wrapped(text, 100)
    assert max(map(font.width, lines)) <= 100
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert font.wrapped("", 100) == [""]
    fitted = font.fitted(text, 100)
    assert len(fitted) == 2
    assert fitted[1].endswith("er)")
