"""Views of items, and the classes that they make."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kshot.config import load_params, params_from
from kshot.data.batches import TrainItems
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.data.views import ViewedItems, Views
from kshot.episodes.frozen import train_pools
from kshot.episodes.loader import EpisodeLoader
from kshot.errors import ConfigError, ValidationError
from kshot.model import load_model
from kshot.stages import meta_train, pretrain, task_pool, validate
from kshot.workspace import Workspace
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params, write_project

VIEWS: Views = ("90", "mirrored", "mirrored 180")


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    return PackedDataset.open(tiny_dataset(n_classes=5, n_images=6).write(tmp_path / "tiny"))


def test_an_index_beyond_the_items_is_a_view_of_one(dataset: PackedDataset) -> None:
    gather, n = item_gather(dataset, torch.device("cpu")), len(dataset.labels)
    viewed = ViewedItems(gather, n, VIEWS)
    item = gather(np.array([4]))[0]
    expected = [item, item.rot90(1, (-2, -1)), item.flip(-1), item.flip(-2)]
    for view, of_item in enumerate(expected):
        assert torch.equal(viewed(np.array([[4 + view * n, 3]]))[0, 0], of_item)


def test_every_view_of_a_class_is_a_class_of_its_own_and_episodes_stay_within_it(dataset: PackedDataset) -> None:
    raw = tiny_params()
    raw["task_pool"]["meta_train"] |= {"views": list(VIEWS), "shape": {"n_way": 12, "k_shot": 1, "n_query": 2}}
    settings = params_from(raw, source="tiny").task_pool
    (pool,) = train_pools(dataset, settings, seed=1)
    n_train, n = len(dataset.class_ids("meta_train")), len(dataset.labels)
    assert len(pool.table.class_ids) == 4 * n_train == len(set(pool.table.class_ids.tolist()))
    drawn = pool.episodes(range(20))
    items = np.concatenate([drawn.support, drawn.query], axis=2)
    assert (items // n == items[:, :, :1] // n).all() and set(np.unique(items // n)) == {0, 1, 2, 3}
    labels = dataset.labels[items % n]
    assert (labels == labels[:, :, :1]).all()
    pairs = labels[:, :, 0] * 4 + items[:, :, 0] // n
    assert all(len(set(row.tolist())) == 12 for row in pairs)


def test_batches_have_the_views_as_classes_too(dataset: PackedDataset) -> None:
    items = TrainItems.of(dataset, batch_size=8, seed=1, n_views=4)
    n_train, n = len(dataset.class_ids("meta_train")), len(dataset.labels)
    assert len(items.items) == 4 * 6 * n_train and np.bincount(items.labels).tolist() == 4 * n_train * [6]
    view, item = np.divmod(items.items, n)
    seen = 4 * dataset.labels[item] + view
    assert all(len(set(seen[items.labels == label].tolist())) == 1 for label in range(4 * n_train))


@pytest.mark.parametrize("algorithm", ["linear_probe", "ridge"])
def test_a_learner_of_batches_is_trained_on_every_view_and_validated_on_items_as_they_are(
    tmp_path: Path, algorithm: str
) -> None:
    torch.set_num_threads(1)
    raw = tiny_params()
    raw["task_pool"]["meta_train"] |= {"views": list(VIEWS), "shape": {"n_way": 12, "k_shot": 1, "n_query": 2}}
    raw["meta_train"]["algorithm"] = {"name": algorithm}
    params, workspace = load_params(write_project(tmp_path, raw) / "params.yaml"), Workspace(tmp_path)
    for stage in (validate, task_pool, meta_train):
        stage.run(params, workspace)
    saved = load_model(workspace.model)
    assert saved.config.n_train_classes == 4 * 5
    if algorithm == "linear_probe":
        assert {tuple(t.shape) for name, t in saved.learner.named_parameters() if "head" in name} >= {(20,)}


def test_ordinary_pretraining_classifies_every_view_and_a_task_without_labels_needs_none(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    n_classes = []
    for pretraining in ("supervised", "rotation"):
        raw = tiny_params()
        raw["task_pool"]["meta_train"] |= {"views": list(VIEWS)}
        raw["pretrain"] = {"name": pretraining, "n_steps": 2, "validate_every": 2}
        root = tmp_path / pretraining
        params, workspace = load_params(write_project(root, raw) / "params.yaml"), Workspace(root)
        for stage in (task_pool, pretrain):
            stage.run(params, workspace)
        n_classes.append(load_model(workspace.pretrained_model).config.n_train_classes)
    assert n_classes == [4 * 5, None]


def test_validation_counts_the_views_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tiny_params()
    raw["task_pool"]["meta_train"] |= {"views": list(VIEWS), "shape": {"n_way": 21, "k_shot": 1, "n_query": 2}}
    params = load_params(write_project(tmp_path, raw) / "params.yaml")
    with pytest.raises(ValidationError, match="classes_per_split"):
        validate.run(params, Workspace(tmp_path))
    assert "meta_train 21-way 1-shot has 20 of 21 needed in the split" in capsys.readouterr().out


def test_every_step_draws_one_of_the_shapes(dataset: PackedDataset) -> None:
    raw = tiny_params()
    more = [{"n_way": 2, "k_shot": 2, "n_query": 2}, {"n_way": 3, "k_shot": 2, "n_query": 1}]
    raw["task_pool"]["meta_train"] |= {"more_shapes": more}
    settings = params_from(raw, source="tiny").task_pool
    gather = item_gather(dataset, torch.device("cpu"))
    loader = EpisodeLoader.of_training(train_pools(dataset, settings, seed=1), gather, per_step=4)
    seen = set()
    for step in range(20):
        whole = loader.load(range(4 * step, 4 * step + 4))
        halves = [loader.load(range(4 * step + 2 * half, 4 * step + 2 * half + 2)) for half in (0, 1)]
        assert torch.equal(whole.support_x, torch.cat([half.support_x for half in halves]))
        seen.add((whole.n_way, whole.support_x.shape[1], whole.query_x.shape[1]))
    assert seen == {(3, 3, 6), (2, 4, 4), (3, 6, 3)}


def test_a_view_that_stands_there_twice_is_refused() -> None:
    raw = tiny_params()
    raw["task_pool"]["meta_train"] |= {"views": ["90", "90"]}
    with pytest.raises(ConfigError, match="task_pool.meta_train.views: need each view once"):
        params_from(raw, source="tiny")
