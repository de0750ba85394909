"""`qa-hooks doctor`, as a user types it."""

from __future__ import annotations

import json

import pytest

from qa_hooks.cli import main
from qa_hooks.images import save_image, to_uint8


def test_a_table_and_a_verdict(capsys):
    assert main(["doctor", "psnr", "--size", "64", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "psnr: usable as a reward"
    assert "finite differences" in out


def test_json_on_photographs_is_nothing_but_json(capsys, photographs, tmp_path):
    for index, picture in enumerate(photographs[:2]):
        save_image(to_uint8(picture), tmp_path / f"{index}.png")
    command = ["doctor", '{"type": "ssim", "channel": "y"}', "--images", str(tmp_path), "--size", "96"]
    assert main([*command, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "usable as a reward"
    assert {"check", "verdict", "measured", "threshold"} == set(found["findings"][0])


def test_a_metric_of_another_library_without_a_gradient_is_a_monitor(capsys):
    pytest.importorskip("torchmetrics")
    assert main(["doctor", "torchmetrics:vif", "--size", "48", "--device", "cpu"]) == 0
    assert "torchmetrics_vif: monitor only (gradient)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["doctor", "nonsense"], "unknown scorer 'nonsense'"),
        (["doctor", "giqa-gmm"], "has to be fitted"),
        (["doctor", "psnr", "--images", "missing"], "missing is not a folder"),
    ],
)
def test_bad_input_is_one_line(command, message, capsys):
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("qa-hooks doctor:")
    assert "Traceback" not in error


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "qa-hooks doctor pyiqa:musiq" in capsys.readouterr().out
