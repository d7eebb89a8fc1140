from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms.protonet import ProtoNet
from kshot.algorithms.ridge import Ridge, RidgeConfig
from kshot.backbones import Conv4Config
from kshot.backbones.contract import Backbone, freeze
from kshot.data.class_table import Int
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.evaluation.features import KeptItems
from kshot.evaluation.scoring import embedded_once
from kshot.ingest.curate import drop
from tests.tiny_dataset import tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    return PackedDataset.open(tiny_dataset().write(tmp_path / "tiny"))


class Counting:
    """A gather that counts the items that it is asked for."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.gather = item_gather(dataset, CPU)
        self.n_items = 0

    def __call__(self, items: Int) -> Tensor:
        self.n_items += np.asarray(items).size
        return self.gather(items)


def backbone(dataset: PackedDataset, *, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return freeze(Conv4Config(width=8).build(dataset.item), "all").eval()


def kept(gather: Counting, dataset: PackedDataset, folder: Path, network: nn.Module) -> Tensor:
    learner, features = embedded_once(ProtoNet(network), KeptItems(gather, dataset, folder))
    assert learner.backbone is not network
    return features(np.array([[3, 40], [3, 59]]))


def test_features_are_those_of_each_item_alone(dataset: PackedDataset, tmp_path: Path) -> None:
    network, gather = backbone(dataset), Counting(dataset)
    found = kept(gather, dataset, tmp_path / "features", network)
    for row, item in ((found[0, 0], 3), (found[0, 1], 40), (found[1, 1], 59)):
        torch.testing.assert_close(row, network(gather(np.array([item])), None)[0], atol=1e-5, rtol=1e-4)


def test_an_item_is_embedded_once_for_all_learners_stages_and_runs(dataset: PackedDataset, tmp_path: Path) -> None:
    gather, folder = Counting(dataset), tmp_path / "features"
    first = kept(gather, dataset, folder, backbone(dataset))
    assert gather.n_items == 60  # whole chunks: the 32 first items, and the others
    second = kept(gather, dataset, folder, backbone(dataset))
    assert gather.n_items == 60 and torch.equal(first, second)
    _, of_ridge = embedded_once(Ridge(backbone(dataset), RidgeConfig()), KeptItems(gather, dataset, folder))
    assert torch.equal(of_ridge(np.array([[3, 40], [3, 59]])), first) and gather.n_items == 60


def test_other_weights_and_another_dataset_have_features_of_their_own(dataset: PackedDataset, tmp_path: Path) -> None:
    gather, folder = Counting(dataset), tmp_path / "features"
    first = kept(gather, dataset, folder, backbone(dataset))
    assert not torch.equal(kept(gather, dataset, folder, backbone(dataset, seed=1)), first)
    drop(dataset.folder, ids=[dataset.manifest["id"][0].as_py()])
    edited = PackedDataset.open(dataset.folder)
    _, features = embedded_once(ProtoNet(backbone(dataset)), KeptItems(Counting(edited), edited, folder))
    torch.testing.assert_close(features(np.array([2])), first[0, :1])
    assert len(list(folder.iterdir())) == 3


def test_the_features_of_an_item_do_not_depend_on_what_is_asked_for_first(
    dataset: PackedDataset, tmp_path: Path
) -> None:
    there = kept(Counting(dataset), dataset, tmp_path / "one", backbone(dataset))
    _, features = embedded_once(ProtoNet(backbone(dataset)), KeptItems(Counting(dataset), dataset, tmp_path / "other"))
    features(np.arange(35, 50))
    assert torch.equal(features(np.array([[3, 40], [3, 59]])), there)


def test_a_backbone_that_is_trained_keeps_none(dataset: PackedDataset, tmp_path: Path) -> None:
    network = Conv4Config(width=8).build(dataset.item).eval()
    embedded_once(ProtoNet(network), KeptItems(Counting(dataset), dataset, tmp_path / "features"))[1](np.array([1]))
    assert not (tmp_path / "features").exists()


def test_a_file_of_another_shape_is_begun_anew(dataset: PackedDataset, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    first = kept(Counting(dataset), dataset, folder, backbone(dataset))
    (of_run,) = folder.iterdir()
    np.save(of_run / "features.npy", np.zeros((2, 2), np.float32))
    np.save(of_run / "known.npy", np.zeros(3, np.bool_))
    assert torch.equal(kept(Counting(dataset), dataset, folder, backbone(dataset)), first)
