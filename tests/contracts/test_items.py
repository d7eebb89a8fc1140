"""What every kind of item must do. The cases come from the union, so a new kind is tested by adding its settings here.

Every kind is packed, validated, drawn as episodes and classified, each through the parts that a run uses.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kshot.algorithms.protonet import ProtoNet, ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.backbones.contract import Flatten
from kshot.data.gather import ResidentItems, item_gather
from kshot.data.items import AnyItemKind, ImageKind, VectorKind
from kshot.data.items.contract import Comparable, ItemKind, Turnable, item_size_bytes
from kshot.data.packed import SPLITS, PackedDataset, Splits
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import EpisodeKind, Uniform
from kshot.errors import DataError
from kshot.evaluation.cost import measure_cost
from kshot.evaluation.scoring import score_episodes
from kshot.ingest.writer import PackedWriter, Record
from kshot.model import ModelConfig, SavedModel
from kshot.serving.classifier import FewShotClassifier
from kshot.validation.facts import collect_facts
from kshot.validation.report import page, summary
from kshot.validation.settings import FactSettings
from kshot.validation.suite import check

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyItemKind)
KINDS: list[Any] = [ImageKind(image_size=8, channels=1), ImageKind(image_size=12, channels=3), VectorKind(size=5)]
PER_CLASS = 6
SHAPE = EpisodeShape(n_way=3, k_shot=2, n_query=3)
CPU = torch.device("cpu")

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


class Scaled(Flatten):
    """Flatten with one parameter, as a learner that is served or timed has some."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, items: torch.Tensor, n_reference: int | None) -> torch.Tensor:
        return self.scale * super().forward(items, n_reference)


def items_of_classes(kind: ItemKind, n_classes: int) -> NDArray[Any]:
    """(n_classes * PER_CLASS, *item): items of a class are near one another, those of different classes are not."""
    centres = np.repeat(kind.example(n_classes), PER_CLASS, axis=0).astype(np.float64)
    spread = 0.05 * np.random.default_rng(1).normal(size=centres.shape) * centres.std()
    if kind.dtype == np.uint8:
        return np.clip(np.rint(centres + spread), 0, 255).astype(np.uint8)
    return (centres + spread).astype(kind.dtype)


def original(kind: ItemKind) -> dict[str, int | str]:
    """What the kind keeps of an original, here of an example."""
    return dict(kind.read(kind.example(1)[0]).original)


def write(kind: Any, folder: Path, items: NDArray[Any]) -> PackedDataset:
    """Three classes in each split."""
    names = [f"{split}/c{number}" for split in SPLITS for number in range(3)]
    with PackedWriter(folder, item=kind, source="toy", licence="none", shard_limit_bytes=2**10) as writer:
        for number, item in enumerate(items):
            name = names[number // PER_CLASS]
            kept = original(kind)
            writer.add(Record(id=f"{number:03d}", class_name=name, group="", item=item, source="toy", original=kept))
        by_split = {split: tuple(name for name in names if name.startswith(split)) for split in SPLITS}
        writer.publish(Splits(**by_split))
    return PackedDataset.open(folder)


@pytest.fixture
def items(kind: Any) -> NDArray[Any]:
    return items_of_classes(kind, 9)


@pytest.fixture
def dataset(kind: Any, items: NDArray[Any], tmp_path: Path) -> PackedDataset:
    return write(kind, tmp_path / "toy", items)


def test_every_kind_of_the_union_is_tested_here() -> None:
    union, *_ = get_args(AnyItemKind)
    assert {get_args(member)[0] for member in get_args(union)} == {type(kind) for kind in KINDS}


@every_kind
def test_a_kind_survives_json(kind: Any) -> None:
    assert ADAPTER.validate_json(ADAPTER.dump_json(kind)) == kind


@every_kind
def test_examples_have_the_form_of_stored_items_and_are_always_the_same(kind: Any) -> None:
    examples = kind.example(4)
    assert (examples.shape, examples.dtype) == ((4, *kind.shape), kind.dtype)
    assert examples.nbytes == 4 * item_size_bytes(kind)
    assert np.array_equal(examples, kind.example(4))
    assert not np.array_equal(examples[0], examples[1])


@every_kind
def test_an_item_that_is_read_again_is_itself(kind: Any) -> None:
    """So that a stored item can be served as it is. The kinds here do not invert."""
    item = kind.example(1)[0]
    read = kind.read(item)
    assert read.item.dtype == kind.dtype
    assert np.array_equal(read.item, item)
    assert read.original.keys() == kind.original.keys()


@every_kind
@pytest.mark.parametrize("source", [b"", b"no item", "no item", np.zeros((2, 2, 2, 2)), np.array(["a"])], ids=repr)
def test_what_is_no_item_is_refused_with_a_reason(kind: Any, source: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\w+ \w+"):
        kind.read(source)
    if isinstance(source, bytes):
        (tmp_path / "file").write_bytes(source)
        with pytest.raises(DataError, match=r"\w+ \w+"):
            kind.read(tmp_path / "file")


@every_kind
def test_a_tensor_is_floating_point_and_follows_the_item_alone(kind: Any) -> None:
    stored = torch.from_numpy(kind.example(6))
    together = kind.tensor(stored.reshape(2, 3, *kind.shape))
    assert together.is_floating_point()
    assert together.shape[:2] == (2, 3)
    assert torch.equal(together[1, 2], kind.tensor(stored[5]))
    assert torch.equal(stored, torch.from_numpy(kind.example(6)))


@every_kind
def test_an_item_is_shown_as_html_that_needs_no_other_file(kind: Any) -> None:
    first, second = (kind.show(item) for item in kind.example(2))
    assert isinstance(first, Markup)
    assert first != second
    assert "http" not in first


@every_kind
def test_facts_are_numbers_of_each_item_alone(kind: Any) -> None:
    facts = kind.facts(kind.example(5))
    assert len(facts) == 5 and len(facts.columns)
    assert set(facts.dtypes) == {np.dtype(np.float64)}
    assert facts.iloc[[3]].reset_index(drop=True).equals(kind.facts(kind.example(5)[3:4]))


@every_kind
def test_what_a_kind_can_do_beyond_the_contract_gives_the_right_form(kind: Any) -> None:
    stored = kind.example(3)
    if isinstance(kind, Turnable):
        turned = kind.turned(stored, 1)
        assert np.array_equal(turned, kind.turned(torch.from_numpy(stored), 1).numpy())
        assert np.array_equal(kind.turned(turned, 3), stored)
    if isinstance(kind, Comparable):
        assert (kind.look(stored).shape, kind.look(stored).dtype) == ((3,), np.uint64)
        assert len(kind.sketch(stored)) == 3 and kind.sketch(stored).dtype == np.uint8


@every_kind
def test_packed_items_come_back_by_every_way_of_gathering(
    kind: Any, items: NDArray[Any], dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = np.array([[53, 0], [17, 18]])
    assert dataset.item == kind
    assert len(dataset.info.shards) > 1
    assert np.array_equal(dataset.gather(indices), items[indices])
    expected = kind.tensor(torch.from_numpy(items[indices]))
    assert torch.equal(item_gather(dataset, CPU)(indices), expected)
    assert torch.equal(ResidentItems(dataset, CPU)(indices), expected)
    monkeypatch.setattr("kshot.data.packed.RESIDENT_LIMIT_BYTES", 0)
    assert np.array_equal(PackedDataset.open(dataset.folder).gather(indices), items[indices])


@every_kind
def test_a_record_of_another_form_is_refused(kind: Any, tmp_path: Path) -> None:
    def record(item: NDArray[Any], kept: dict[str, int | str]) -> Record:
        return Record(id="0", class_name="a", group="", item=item, source="toy", original=kept)

    item = kind.example(1)[0]
    with PackedWriter(tmp_path / "toy", item=kind, source="toy", licence="") as writer:
        with pytest.raises(ValueError, match="the dataset holds"):
            writer.add(record(item.astype(np.float64), original(kind)))
        with pytest.raises(ValueError, match="the dataset holds"):
            writer.add(record(item[:-1], original(kind)))
        with pytest.raises(ValueError, match="of the original it gives .*seconds; the dataset keeps"):
            writer.add(record(item, {**original(kind), "seconds": 3}))


@every_kind
def test_a_dataset_of_the_kind_is_validated_and_reported(kind: Any, dataset: PackedDataset) -> None:
    kinds = {"meta_train": (EpisodeKind(shape=SHAPE, sampler=Uniform()),)}
    facts = collect_facts(dataset, kinds, FactSettings(near_duplicate_correlation=1.0), seed=1)
    results = check(dataset, facts, FactSettings())
    assert [result.name for result in results if not result.passed and result.severity == "critical"] == []
    assert not [result.name for result in results if result.found == "could not be checked"]
    assert summary(dataset, facts, results)["item"]["kind"] == kind.kind
    report = page(dataset, facts, results, seed=1)
    assert str(kind) in report
    assert str(kind.show(dataset.gather(np.array([0]))[0])) in report


@every_kind
def test_a_shard_that_is_not_as_declared_is_found(kind: Any, dataset: PackedDataset) -> None:
    shard = dataset.folder / dataset.info.shards[0].file
    content = bytearray(shard.read_bytes())
    at = content.index(b"descr")
    content[at : at + 5] = b"xxxxx"
    shard.write_bytes(content)
    facts = collect_facts(dataset, {}, FactSettings(), seed=1)
    results = {result.name: result for result in check(dataset, facts, FactSettings())}
    assert [name for name, result in results.items() if not result.passed and result.severity == "critical"]
    assert not results["shard_layout"].passed
    assert (~facts.items["readable"]).sum() == dataset.info.shards[0].items


@every_kind
def test_episodes_of_the_kind_are_classified_by_prototypes(kind: Any, dataset: PackedDataset) -> None:
    table, gather = dataset.class_table("meta_test"), item_gather(dataset, CPU)
    pool = SampledPool.of_split(table, SHAPE, Uniform(), seed=1, split="meta_test")
    episodes = EpisodeLoader(pool=pool, gather=gather).load(range(4))
    assert episodes.support_x.shape[:2] == (4, 6)
    learner = ProtoNet(Flatten())
    accuracy = score_episodes(learner, pool.freeze(20).indices, gather).accuracy
    assert accuracy.mean() > 0.95


@every_kind
def test_items_are_served_by_the_rule_of_ingest(kind: Any, dataset: PackedDataset) -> None:
    config = ModelConfig(algorithm=ProtoNetConfig(), backbone=Conv4Config(), item=kind, train_shape=SHAPE)
    classifier = FewShotClassifier(SavedModel(learner=ProtoNet(Scaled()), config=config))
    items = dataset.class_table("meta_test").items
    support, queries = (dataset.gather(items[:, columns].ravel()) for columns in (slice(0, 2), slice(2, 5)))
    prediction = classifier.predict(support, list("aabbcc"), queries)
    assert prediction.labels[prediction.probabilities.argmax(axis=1)].tolist() == list("aaabbbccc")


@every_kind
def test_the_cost_of_a_learner_is_measured_on_examples(kind: Any) -> None:
    cost = measure_cost(ProtoNet(Scaled()), kind, SHAPE)
    assert cost.parameters == 1
    assert cost.adapt_ms > 0
