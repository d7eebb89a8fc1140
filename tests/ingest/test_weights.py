from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kshot.data.weights import read_record, read_weights
from kshot.errors import DataError
from kshot.ingest.weights import IMAGENET_MEAN, IMAGENET_STD, Brought, add_weights, bring, tensors_of

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "bn.num_batches_tracked": torch.tensor(3), "b": torch.ones(2)}


def as_safetensors(path: Path) -> Path:
    save_file(STATE, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_state_dict(path: Path) -> Path:
    torch.save(STATE, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_checkpoint(path: Path) -> Path:
    torch.save({"epoch": 3, "model": {"state_dict": STATE}}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize("write", [as_safetensors, as_state_dict, as_checkpoint])
def test_the_tensors_of_a_file_are_kept_with_what_is_said_of_them(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "data" / "weights" / "mine"
    brought = bring(str(write(tmp_path / "mine")))
    record = add_weights(folder, brought, licence="MIT", mean=IMAGENET_MEAN, std=IMAGENET_STD, input_size=64)
    kept = read_weights(folder)
    assert kept.record == record == read_record(folder)
    assert (record.licence, record.mean, record.input_size, kept.name) == ("MIT", IMAGENET_MEAN, 64, "mine")
    assert kept.tensors.keys() == {"conv.weight", "b"}
    assert torch.equal(kept.tensors["conv.weight"], STATE["conv.weight"])


def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(DataError, match=r"whole.pth cannot be read as tensors alone .*next: save it as torch.save"):
        bring(str(tmp_path / "whole.pth"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pth", r"nowhere.pth does not exist; needed a file \(.safetensors, .pth.*\) or timm:\.\.\."),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'"),
        ("torchvision:resnet18.BEST", "resnet18 has no weights 'BEST'; needed one of IMAGENET1K_V1"),
        ("package:anything==1", "package:anything==1 is not known; needed one of efficientnet-lite0"),
    ],
)
def test_a_source_that_is_none_is_named(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        bring(source)


@pytest.mark.parametrize("source", ["timm:resnet18", "torchvision:resnet18", "huggingface:timm/resnet18.a1_in1k"])
def test_without_a_network_it_says_which_file_to_bring(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        DataError, match=r"cannot be had .*next: download its .safetensors or .pth on a machine with one"
    ):
        bring(source)


def test_a_name_stands_for_its_bytes_for_good(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    brought = Brought(tensors={"a": torch.ones(2)}, source="x.pth", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    add_weights(folder, brought)
    add_weights(folder, brought)  # the same once more
    other = Brought(tensors={"a": torch.zeros(2)}, source="x.pth", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(DataError, match="mine stands for other weights already.*next: kshot weights add mine-2"):
        add_weights(folder, other)
    assert torch.equal(read_weights(folder).tensors["a"], torch.ones(2))


def test_what_pixels_have_to_be_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"x.pth does not say how its pixels .*next: add --mean 0.485,0.456,0.406 --std"
    ):
        add_weights(tmp_path / "mine", Brought(tensors={"a": torch.ones(2)}, source="x.pth"))
    assert not (tmp_path / "mine").exists()


def test_weights_that_were_altered_or_are_missing_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    add_weights(folder, Brought(tensors={"a": torch.ones(2)}, source="x", mean=IMAGENET_MEAN, std=IMAGENET_STD))
    with pytest.raises(DataError, match="no weights 'other'; found: mine; next: kshot weights add other --from FILE"):
        read_record(tmp_path / "other")
    (folder / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="its record names .*next: dvc checkout --force data.dvc"):
        read_weights(folder)


def test_counters_of_batches_are_no_weights(tmp_path: Path) -> None:
    assert tensors_of("x.safetensors", as_safetensors(tmp_path / "x").read_bytes()).keys() == {"conv.weight", "b"}
