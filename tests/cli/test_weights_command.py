"""`kshot weights`."""

from pathlib import Path

import torch

from tests.cli.test_cli import Kshot, kshot

__all__ = ["kshot"]  # a fixture


def test_weights_of_a_file_are_kept_and_listed(kshot: Kshot, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "mine.pth")
    empty = kshot(tmp_path, "weights", "list")
    assert empty.stdout == "no weights here; next: kshot weights add NAME --from FILE, or timm:MODEL\n"
    said = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--licence", "MIT")
    done = kshot(tmp_path, "weights", "add", "mine", "--from", "mine.pth", *said)
    assert done.returncode == 0, done.stderr
    assert "data/weights/mine: mine.pth, licence MIT, SHA-256 " in done.stdout
    assert "next: in params.yaml, backbone: {name: ..., weights: mine}" in done.stdout
    assert kshot(tmp_path, "weights", "list").stdout.startswith("mine  mine.pth  licence MIT  SHA-256 ")


def test_what_is_wrong_is_one_line_and_exit_2(kshot: Kshot, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "mine.pth")
    for arguments, message in (
        (("mine", "--from", "mine.pth"), "next: add --mean 0.485,0.456,0.406 --std"),
        (("mine", "--from", "mine.pth", "--mean", "0.5"), "--mean is 0.5; needed three numbers"),
        (("a/b", "--from", "mine.pth"), "found name of weights 'a/b'"),
        (("mine", "--from", "nowhere.pth"), "nowhere.pth does not exist"),
    ):
        done = kshot(tmp_path, "weights", "add", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert not (tmp_path / "data").exists()
