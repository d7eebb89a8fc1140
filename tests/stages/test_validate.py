import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from kshot.config import Params, params_from
from kshot.data.packed import PackedDataset, Quarantined
from kshot.errors import DataError, ValidationError
from kshot.stages import validate
from kshot.validation.facts import collect_facts
from kshot.validation.report import CheckResult
from kshot.workspace import Workspace
from tests.tiny_dataset import TinyDataset, noise, tiny_dataset

PRESET = Path(__file__).parents[2] / "presets" / "demo.yaml"
TASK_POOL = {
    "meta_train": {"shape": {"n_way": 4, "k_shot": 1, "n_query": 2}},
    "meta_val": {"shape": {"n_way": 2, "k_shot": 1, "n_query": 2}, "n_episodes": 10},
    "meta_test": {
        "n_episodes": 10,
        "n_query": 3,
        "settings": [{"n_way": 2, "k_shot": 1}, {"n_way": 3, "k_shot": 2}],
    },
}


def tiny_params(**limits: float) -> Params:
    raw = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    raw |= {"dataset": {"name": "tiny"}, "task_pool": TASK_POOL, "validate": limits}
    return params_from(raw, source="test")


def failures(tiny: TinyDataset, tmp_path: Path, **limits: float) -> dict[str, CheckResult]:
    """The checks that do not pass, by name."""
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny"))
    return failures_of(dataset, tiny_params(**limits))


def failures_of(dataset: PackedDataset, params: Params) -> dict[str, CheckResult]:
    facts = collect_facts(dataset, params.task_pool.kinds(), params.validate, params.seed)
    return {result.name: result for result in validate.check(dataset, facts, params.validate) if not result.passed}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    facts: dict
    page: str
    printed: str


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Outcome:
    """One run on a good dataset whose names and files are awkward."""
    root = tmp_path_factory.mktemp("good")
    tiny = tiny_dataset()
    tiny.manifest.loc[tiny.rows("train/c0"), "class"] = "train/<b>&'\u4e2d"
    tiny.splits["meta_train"][0] = "train/<b>&'\u4e2d"
    tiny.quarantined = [Quarantined(source="broken<1>.png", reason="truncated after 100 bytes")]
    tiny.write(root / "data" / "tiny")
    validate.run(tiny_params(), Workspace(root))
    output = root / "artifacts" / "validate"
    assert (output / "report.html").read_bytes() == (root / ".kshot" / "validate" / "report.html").read_bytes()
    return Outcome(
        facts=json.loads((output / "facts.json").read_text(encoding="utf-8")),
        page=(output / "report.html").read_text(encoding="utf-8"),
        printed=str(output),
    )


def test_a_good_dataset_passes_every_critical_check(good):
    assert good.facts["accepted"]
    assert (good.facts["items"], good.facts["classes"], good.facts["dataset"]) == (60, 12, "tiny")
    assert [check["name"] for check in good.facts["checks"] if not check["passed"]] == ["quarantined_files"]
    assert good.facts["quarantined"] == [{"source": "broken<1>.png", "reason": "truncated after 100 bytes"}]


def test_facts_are_the_same_bytes_for_the_same_data_in_another_place(tmp_path):
    for place in ("a", "b"):
        tiny_dataset().write(tmp_path / place / "data" / "tiny")
        validate.run(tiny_params(), Workspace(tmp_path / place))
    for name in ("facts.json", "report.html"):
        first, second = ((tmp_path / place / "artifacts" / "validate" / name).read_bytes() for place in ("a", "b"))
        assert first == second
        assert str(tmp_path).encode() not in first


class _Page(HTMLParser):
    """Collects what a browser would fetch, checks that every tag is closed in order, and keeps the text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_whole_and_fetches_nothing(good):
    page = _Page()
    page.feed(good.page)
    page.close()
    assert page.open == []
    assert all(uri.startswith("data:") for uri in page.fetched)
    assert sum(uri.startswith("data:image/png") for uri in page.fetched) == 12 * 5
    assert not re.search(r"https?://|@import|<script|url\(", good.page)
    assert good.page.startswith("<!doctype html>")


def test_the_report_says_the_verdict_first_and_shows_names_as_they_are(good):
    page = _Page()
    page.feed(good.page)
    assert "The dataset tiny is fit for the configured episodes; 1 of 24 checks gave a warning." in page.text
    assert "train/<b>&'\u4e2d, 5 images" in page.text
    assert "broken<1>.png" in page.text
    assert "truncated after 100 bytes" in page.text


def test_a_refused_dataset_leaves_its_report_and_no_artifact(tmp_path, capsys):
    tiny = tiny_dataset()
    tiny.write(tmp_path / "data" / "tiny")
    validate.run(tiny_params(), Workspace(tmp_path))
    assert "tiny: 24 checks, no critical failure, 0 warnings" in capsys.readouterr().out
    worse = tiny_dataset(n_classes=7)
    for name in worse.splits["meta_test"]:
        worse.drop(worse.rows(name)[1:])
    worse.manifest["class"] = worse.manifest["class"].replace("test/c0", "test/\x1b[31m\nred")
    worse.splits["meta_test"][0] = "test/\x1b[31m\nred"
    (tmp_path / "data" / "tiny").rename(tmp_path / "before")
    worse.write(tmp_path / "data" / "tiny")

    with pytest.raises(ValidationError, match=r"^tiny fails 1 of 24 checks: images_per_class \(7") as refusal:
        validate.run(tiny_params(), Workspace(tmp_path))

    line = str(refusal.value)
    assert line == (
        "tiny fails 1 of 24 checks: images_per_class (7 classes short of images); see .kshot/validate/report.html; "
        "next: ingest more images of the classes in meta_test"
    )
    assert capsys.readouterr().out.splitlines()[-1] == (
        "images_per_class: 7 classes short of images "
        r"('test/\x1b[31m\nred' has 1 of 5, 'test/c1' has 1 of 5, 'test/c2' has 1 of 5, and 4 more); "
        "next: ingest more images of the classes in meta_test"
    )
    assert list((tmp_path / "artifacts" / "validate").iterdir()) == []
    page = (tmp_path / ".kshot" / "validate" / "report.html").read_text(encoding="utf-8")
    assert "The dataset tiny is refused: 1 of 24 checks failed." in page
    assert not json.loads((tmp_path / ".kshot" / "validate" / "facts.json").read_text(encoding="utf-8"))["accepted"]


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no dataset at .*tiny"):
        validate.run(tiny_params(), Workspace(tmp_path))


def test_blank_images_are_refused_by_name_unless_a_share_is_allowed(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[[2, 41]] = 255
    refused = failures(tiny, tmp_path / "strict")
    assert set(refused) == {"not_blank"}
    assert refused["not_blank"].severity == "critical"
    assert refused["not_blank"].found == "2 items blank"
    assert refused["not_blank"].offenders == ("'train/c0/2.png'", "'test/c0/41.png'")
    assert failures(tiny, tmp_path / "lenient", max_blank_share=0.05) == {}


def test_altered_pixels_are_refused_by_name(tmp_path):
    folder = tiny_dataset().write(tmp_path / "tiny")
    content = bytearray((folder / "items-00001.npy").read_bytes())
    content[-1] ^= 255
    (folder / "items-00001.npy").write_bytes(content)
    refused = failures_of(PackedDataset.open(folder), tiny_params())
    assert set(refused) == {"unaltered_items"}
    assert refused["unaltered_items"].offenders == ("'test/c3/59.png'",)


def test_a_shard_of_another_layout_is_refused_and_the_report_is_still_made(tmp_path, capsys):
    folder = tiny_dataset().write(tmp_path / "data" / "tiny")
    np.save(folder / "items-00000.npy", np.load(folder / "items-00000.npy").astype(np.int8))
    with pytest.raises(ValidationError, match=r"shard_layout \(1 shard of another layout\); .*next: dvc checkout"):
        validate.run(tiny_params(), Workspace(tmp_path))
    assert "(items-00000.npy is int8 40 x 16 x 16 x 1, not uint8 40 x 16 x 16 x 1)" in capsys.readouterr().out
    assert (tmp_path / ".kshot" / "validate" / "report.html").is_file()


def test_an_identical_image_in_two_classes_is_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[7] = tiny.pixels[0]
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"identical_across_classes"}
    assert refused["identical_across_classes"].severity == "critical"
    assert refused["identical_across_classes"].offenders == ("'train/c0/0.png' = 'train/c1/7.png'",)


def test_an_identical_image_in_two_splits_is_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[50] = tiny.pixels[0]
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"identical_across_classes", "identical_across_splits"}
    assert refused["identical_across_splits"].severity == "critical"
    assert refused["identical_across_splits"].offenders == ("'train/c0/0.png' = 'test/c2/50.png'",)


def test_an_image_twice_in_its_class_is_a_warning(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[1] = tiny.pixels[0]
    warned = failures(tiny, tmp_path)
    assert set(warned) == {"identical_within_class"}
    assert warned["identical_within_class"].severity == "warning"


def test_a_class_in_two_splits_is_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.splits["meta_test"].append("train/c1")
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"disjoint_splits"}
    assert refused["disjoint_splits"].offenders == ("'train/c1'",)


def test_a_class_with_too_few_images_is_refused_for_the_neediest_shape(tmp_path):
    tiny = tiny_dataset()
    tiny.drop(tiny.rows("test/c1")[:3])  # 2 left: short for 1 + 3 and for 2 + 3
    tiny.drop(tiny.rows("val/c0")[:3])  # 2 left of 1 + 2
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"images_per_class"}
    assert refused["images_per_class"].offenders == ("'val/c0' has 2 of 3", "'test/c1' has 2 of 5")


def test_a_split_with_too_few_classes_is_refused(tmp_path):
    tiny = tiny_dataset(n_classes=2)
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"classes_per_split"}
    assert refused["classes_per_split"].offenders == (
        "meta_train 4-way 1-shot has 2 of 4 needed in the split",
        "meta_test 3-way 2-shot has 2 of 3 needed in the split",
    )


def test_items_of_a_class_without_a_split_are_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.append(noise(2, seed=3), "lost")
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"known_labels"}
    assert refused["known_labels"].offenders == ("'lost' with 2 items",)


def test_an_id_used_twice_is_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest.loc[9, "id"] = "train/c0/0.png"
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"unique_ids"}
    assert refused["unique_ids"].offenders == ("'train/c0/0.png'",)


def test_missing_values_are_refused_by_column(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest.loc[[1, 2], "source"] = None
    refused = failures(tiny, tmp_path)
    assert set(refused) == {"manifest_values"}
    assert refused["manifest_values"].offenders == ("source misses 2",)


def test_odd_originals_are_told(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest.loc[0, "mode"] = "text"
    tiny.manifest.loc[1, "width"] = 5
    told = failures(tiny, tmp_path)
    assert {name: result.severity for name, result in told.items()} == {
        "original_mode": "critical",
        "original_size": "warning",
    }
    assert told["original_size"].offenders == ("'train/c0/1.png' was 5 x 16",)


def test_of_padded_originals_the_longer_side_counts(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest.loc[[1, 2], "width"] = 5
    tiny.manifest.loc[2, "height"] = 9
    folder = tiny.write(tmp_path / "tiny")
    info = json.loads((folder / "dataset.json").read_text())
    info["item"]["fit"] = "pad"
    (folder / "dataset.json").write_text(json.dumps(info))
    result = failures_of(PackedDataset.open(folder), tiny_params())["original_size"]
    assert result.offenders == ("'train/c0/2.png' was 5 x 9",)
    assert result.needed == "originals of at least 16 pixels on the longer side"


def test_faint_images_are_a_warning(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[4] = noise(1, seed=11, low=100, high=112)[0]
    warned = failures(tiny, tmp_path)
    assert set(warned) == {"value_range"}
    assert warned["value_range"].offenders == ("'train/c0/4.png'",)


def test_near_duplicates_are_counted_and_shown(tmp_path):
    tiny = tiny_dataset()
    base = tiny.pixels[0].astype(np.int64)
    for row in (7, 50):
        tiny.pixels[row] = np.clip(base // 2 + 60 + noise(1, seed=row, high=2)[0], 0, 255)
    tiny.write(tmp_path / "data" / "tiny")
    validate.run(tiny_params(), Workspace(tmp_path))
    output = tmp_path / "artifacts" / "validate"
    near = json.loads((output / "facts.json").read_text(encoding="utf-8"))["near_duplicates"]
    assert (near["across_classes"], near["across_splits"], near["compared"]) == (3, 2, 60)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "3 pairs, 2 across splits" in page
    assert page.count("<figcaption>") == 12 + 3
    assert failures_of(PackedDataset.open(tmp_path / "data" / "tiny"), tiny_params(max_near_duplicates=3)) == {}


def test_too_many_quarantined_files_are_refused(tmp_path):
    tiny = tiny_dataset()
    tiny.quarantined = [Quarantined(source=f"{i}.png", reason="empty") for i in range(4)]
    refused = failures(tiny, tmp_path)
    assert {name: result.found for name, result in refused.items()} == {
        "quarantined_files": "4 files",
        "quarantined_share": "6.2%, most often for 'empty' (4 of 4)",
    }
    assert refused["quarantined_share"].severity == "critical"


def test_drift_of_the_last_version_is_a_warning(tmp_path):
    tiny = tiny_dataset()
    for number in range(2):
        tiny.append(noise(8, seed=500 + number, high=64), f"train/c{number}", version=2)
    warned = failures(tiny, tmp_path)
    assert set(warned) == {"drift_mean", "drift_std", "drift_classes"}
    assert {result.severity for result in warned.values()} == {"warning"}
    assert re.fullmatch(r"12\d\.\d before, 3\d\.\d in the last version", warned["drift_mean"].found)


def test_a_check_that_cannot_be_made_has_failed(tmp_path):
    dataset = PackedDataset.open(tiny_dataset().write(tmp_path / "tiny"))
    params = tiny_params()
    facts = collect_facts(dataset, params.task_pool.kinds(), params.validate, params.seed)
    del facts.items["mode"]
    results = {result.name: result for result in validate.check(dataset, facts, params.validate)}
    assert not results["manifest_columns"].passed
    assert results["manifest_columns"].found == "8 of these 9"
    assert not results["original_mode"].passed
    assert results["original_mode"].found == "could not be checked"
