"""The runner alone: without kshot and torch, with items from files, and with settings that are not the default."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.algorithms import FEATConfig, LDAConfig, MatchingConfig, R2D2Config, RidgeConfig, TipAdapterConfig
from kshot.algorithms.learner import Problem
from kshot.data.items import ImageKind, VectorKind
from kshot.episodes.copies import AtTestTime, Copies
from kshot.episodes.episode import Support
from kshot.export import runner
from kshot.export.exporting import item_description
from kshot.export.learners import recipe_of
from tests.contracts.test_exports import (
    CLASSES,
    QUERIES,
    SMALL,
    SUPPORT,
    answers_of,
    check_answers,
    exported,
    saved_at,
    support_folder,
)
from tests.toy_episodes import SHAPE, LinearBackbone, image_items

WITHOUT_KSHOT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"kshot", "torch", "pydantic", "onnx", "pandas", "PIL"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import numpy as np
import kshot_runner
given = np.load(sys.argv[2])
if sys.argv[3] == "fixed":
    found = kshot_runner.FixedClassifier(sys.argv[1]).classify(given["queries"])
else:
    found = kshot_runner.Classifier(sys.argv[1]).adapt(given["support"], given["classes"]).classify(given["queries"])
np.savez(sys.argv[4], labels=found.labels, probabilities=found.probabilities)
"""


@pytest.mark.parametrize("kind", ["adapted", "fixed"])
def test_it_runs_where_neither_kshot_nor_torch_can_be_imported(tmp_path: Path, kind: str) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    support = {"support": support_folder(tmp_path)} if kind == "fixed" else {}
    folder = exported(model, format="onnx", **support)
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, support=image_items()[SUPPORT], classes=np.array(CLASSES), queries=image_items()[QUERIES])
    command = [sys.executable, "-I", "-c", WITHOUT_KSHOT, str(folder), str(given), kind, str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answers = np.load(found)
    check_answers((answers["labels"], answers["probabilities"]), model)


OTHER_SETTINGS: list[Any] = [
    FEATConfig(temperature=4.0),
    LDAConfig(shrinkage=0.1),
    MatchingConfig(distance="cosine", cosine_scale=5.0),
    R2D2Config(penalty=0.01, scale=3.0),
    RidgeConfig(penalty=0.02),
    TipAdapterConfig(alpha=3.0, beta=1.0),
]


@pytest.mark.parametrize("n_support", [4, 30])  # fewer items than features, and more
@pytest.mark.parametrize("config", OTHER_SETTINGS, ids=lambda config: config.name)
def test_a_learner_answers_as_kshots_does_with_any_settings(config: Any, n_support: int) -> None:
    torch.manual_seed(3)
    learner = config.build(LinearBackbone(), Problem(train_shape=SHAPE, n_train_classes=8)).on_features().eval()
    features, queries = torch.randn(1, n_support, 8), torch.randn(1, 7, 8)
    labels = torch.cat([torch.arange(3), torch.zeros(n_support - 3, dtype=torch.int64)])  # shots differ by class
    with torch.no_grad():
        expected = learner.classify(learner.adapt(Support(x=features, y=labels[None], n_way=3)), queries)[0]
    recipe = recipe_of(learner)
    assert recipe is not None
    adapt = runner.LEARNERS[recipe.name]
    members = np.eye(3)[labels.numpy()]
    answer = adapt(features[0].double().numpy(), members, recipe.description, recipe.arrays)
    found = torch.from_numpy(answer(queries[0].double().numpy())).log_softmax(1)
    np.testing.assert_allclose(found, expected.log_softmax(1), rtol=1e-4, atol=1e-4)


def test_full_context_is_left_to_kshot() -> None:
    problem = Problem(train_shape=SHAPE, n_train_classes=8)
    assert recipe_of(MatchingConfig(context_steps=1).build(LinearBackbone(), problem)) is None


@pytest.mark.parametrize("format_", ["onnx", "torch"])
def test_copies_of_items_at_test_time_are_part_of_the_export(tmp_path: Path, format_: str) -> None:
    how = AtTestTime(support=Copies(views=("mirrored",)), query=Copies(views=("90", "mirrored")))
    plain = answers_of(saved_at(tmp_path / "plain", RidgeConfig(), SMALL))
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL, test_time=how)
    assert np.abs(answers_of(model) - plain).max() > 0.01
    folder = exported(model, format=format_)
    found = runner.Classifier(folder).adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES])
    check_answers(found, model)
    folder = exported(model, format=format_, support=support_folder(tmp_path))
    check_answers(runner.FixedClassifier(folder).classify(image_items()[QUERIES]), model)


def test_what_does_not_fit_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    folder = exported(saved_at(tmp_path / "model", RidgeConfig(), SMALL), format="torch")
    classifier, items = runner.Classifier(folder), image_items()
    with pytest.raises(ValueError, match=r"items are float64 \(2, 16, 16, 1\); need uint8 \(at least 1, 16, 16, 1\)"):
        classifier.features(items[:2] / 255)
    with pytest.raises(ValueError, match=r"found labels of shape \(1,\) for 2 items; need one each"):
        classifier.adapt(items[:2], ["a"])
    with pytest.raises(ValueError, match="support items are of 1 class; need at least 2 classes"):
        classifier.adapt(items[:2], ["a", "a"])
    with pytest.raises(FileNotFoundError, match="next: use Classifier"):
        runner.FixedClassifier(folder)


RNG = np.random.default_rng(4)
KINDS = [
    ImageKind(image_size=16, channels=3, fit=fit, invert=invert, jpeg=jpeg)
    for fit, invert, jpeg in [
        ("crop", False, "full"),
        ("pad", True, "full"),
        ("stretch", False, "scaled"),
        ("crop", False, "scaled"),
        ("pad", False, "scaled"),
    ]
] + [ImageKind(image_size=24, channels=1), ImageKind(image_size=24, channels=1, fit="pad", invert=True)]


def pictures(folder: Path) -> list[Path]:
    """One of each mode that is read, some of them with an orientation, wider and higher than they are in the item."""
    smooth = np.asarray(Image.fromarray(RNG.integers(0, 256, (9, 12, 4), dtype=np.uint8)).resize((150, 101)))
    colour = Image.fromarray(smooth[:, :, :3])
    made = {"colour.png": colour, "alpha.png": Image.fromarray(smooth), "grey.png": colour.convert("L")}
    made |= {"palette.gif": colour.convert("P"), "bits.png": colour.convert("1"), "cmyk.tiff": colour.convert("CMYK")}
    made |= {"small.bmp": colour.resize((7, 5)), "tall.webp": colour.rotate(90, expand=True)}
    for name, picture in made.items():
        picture.save(folder / name)
    Image.fromarray(smooth).quantize().save(folder / "see-through.png", transparency=3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colour.save(folder / f"turned-{orientation}.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pictures_are_read_by_the_rule_of_kshot(tmp_path: Path, kind: ImageKind) -> None:
    description = item_description(kind)
    files = pictures(tmp_path)
    assert len(files) == 17
    for path in files:
        found = runner.read_item(path, description)
        assert (found.dtype, found.shape) == (kind.dtype, kind.shape)
        np.testing.assert_array_equal(found, kind.read(path).item, err_msg=path.name)


def test_a_deep_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        runner.read_item(tmp_path / "deep.png", item_description(KINDS[0]))


def test_vectors_are_read_from_files_of_numpy(tmp_path: Path) -> None:
    kind = VectorKind(size=5)
    np.save(tmp_path / "one.npy", np.arange(5))
    np.save(tmp_path / "long.npy", np.arange(6))
    np.testing.assert_array_equal(
        runner.read_item(tmp_path / "one.npy", item_description(kind)), kind.read(tmp_path / "one.npy").item
    )
    with pytest.raises(ValueError, match=r"of shape \(6,\); need \(5,\)"):
        runner.read_item(tmp_path / "long.npy", item_description(kind))
