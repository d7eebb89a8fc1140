"""`kshot curate`, and that the command which every finding of validation ends with resolves it."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kshot.config import params_from
from kshot.data.items import VectorKind
from kshot.data.packed import PackedDataset, Quarantined, Splits
from kshot.errors import ValidationError
from kshot.ingest.union import unite
from kshot.ingest.writer import PackedWriter, Record
from kshot.stages import validate
from kshot.validation.suite import in_words
from kshot.workspace import Workspace
from tests.cli import test_cli
from tests.stages.test_validate import PRESET, TASK_POOL, failures_of, tiny_params
from tests.tiny_dataset import TinyDataset, noise, tiny_dataset

Kshot = test_cli.Kshot
kshot = test_cli.kshot


def same_in_two_classes(tiny: TinyDataset) -> None:
    tiny.pixels[7] = tiny.pixels[0]


def same_in_two_splits(tiny: TinyDataset) -> None:
    tiny.pixels[45] = tiny.pixels[0]


def same_twice_in_a_class(tiny: TinyDataset) -> None:
    tiny.pixels[[1, 3]] = tiny.pixels[0]


def blank(tiny: TinyDataset) -> None:
    tiny.pixels[[2, 41]] = 255


def faint(tiny: TinyDataset) -> None:
    tiny.pixels[4] = noise(1, seed=11, low=100, high=112)[0]


def alike(tiny: TinyDataset) -> None:
    base = tiny.pixels[0].astype(np.int64)
    for row in (7, 50):
        tiny.pixels[row] = np.clip(base // 2 + 60 + noise(1, seed=row, high=2)[0], 0, 255)


def small_class(tiny: TinyDataset) -> None:
    tiny.drop(tiny.rows("train/c1")[:3])


def small_class_beside_smaller_ones_that_will_do(tiny: TinyDataset) -> None:
    tiny.drop(tiny.rows("test/c1")[:1])  # 4 of 5
    tiny.drop(tiny.rows("train/c1")[:2])  # 3 of 3


def no_split(tiny: TinyDataset) -> None:
    tiny.append(noise(5, seed=3), "lost $(one)")


def two_splits(tiny: TinyDataset) -> None:
    tiny.splits["meta_test"].append("train/c1")


def too_few_classes(tiny: TinyDataset) -> None:
    for name in tiny.splits["meta_test"][1:]:
        tiny.drop(tiny.rows(name))
    tiny.splits["meta_test"] = tiny.splits["meta_test"][:1]


def one_id_twice(tiny: TinyDataset) -> None:
    tiny.manifest.loc[9, "id"] = "train/c0/0.png"


def odd_mode(tiny: TinyDataset) -> None:
    tiny.manifest.loc[0, "mode"] = "text"


def enlarged(tiny: TinyDataset) -> None:
    tiny.manifest.loc[1, "width"] = 5


def twins(tiny: TinyDataset) -> None:
    tiny.manifest["class"] = tiny.manifest["class"].replace("train/c1", "train/C0")
    tiny.splits["meta_train"][1] = "train/C0"


@pytest.mark.parametrize(
    ("check", "provoke"),
    [
        ("identical_across_classes", same_in_two_classes),
        ("identical_across_splits", same_in_two_splits),
        ("identical_within_class", same_twice_in_a_class),
        ("not_blank", blank),
        ("value_range", faint),
        ("near_duplicates", alike),
        ("images_per_class", small_class),
        ("images_per_class", small_class_beside_smaller_ones_that_will_do),
        ("known_labels", no_split),
        ("disjoint_splits", two_splits),
        ("classes_per_split", too_few_classes),
        ("unique_ids", one_id_twice),
        ("original_mode", odd_mode),
        ("original_size", enlarged),
        ("distinct_names", twins),
    ],
)
def test_the_command_that_a_finding_ends_with_resolves_it(
    kshot: Kshot, tmp_path: Path, check: str, provoke: Callable[[TinyDataset], None]
) -> None:
    tiny = tiny_dataset(n_classes=6)
    provoke(tiny)
    tiny.write(tmp_path / "data" / "tiny")
    assert_resolved(kshot, tmp_path, check)


def test_numbers_that_are_not_finite_are_dropped_by_the_command(kshot: Kshot, tmp_path: Path) -> None:
    classes = [f"{split}{n}" for split in ("train", "val", "test") for n in range(5)]
    with PackedWriter(tmp_path / "data" / "tiny", item=VectorKind(size=3), source="toy", licence="none") as writer:
        for name in classes:
            for number in range(5):
                numbers = np.random.default_rng(hash((name, number)) % 1000).random(3, dtype=np.float32)
                numbers[0] = np.nan if (name, number) == ("train0", 3) else numbers[0]
                writer.add(Record(id=f"{name}/{number}", class_name=name, group="", item=numbers, source="toy"))
        writer.publish(
            Splits(meta_train=tuple(classes[:5]), meta_val=tuple(classes[5:10]), meta_test=tuple(classes[10:]))
        )
    assert_resolved(kshot, tmp_path, "finite_numbers")


def assert_resolved(kshot: Kshot, root: Path, check: str) -> None:
    params = tiny_params()
    before = failures_of(PackedDataset.open(root / "data" / "tiny"), params)
    command = before[check].remedy.command
    critical = before[check].severity == "critical"
    assert in_words(before[check]).endswith(f"; next: {command}")
    with pytest.raises(ValidationError, match=rf"{check} \(.*; next: ") if critical else nullcontext():
        validate.run(params, Workspace(root))
    assert (root / ".kshot" / "validate" / "findings.csv").exists()
    words = shlex.split(command.partition(", or ")[0])
    assert words[:3] == ["kshot", "curate", "tiny"]
    done = kshot(root, *words[1:])
    assert done.returncode == 0, done.stderr
    after = failures_of(PackedDataset.open(root / "data" / "tiny"), params)
    assert check not in after
    assert after.keys() <= before.keys()


def lowered_n_way(tiny: TinyDataset) -> tuple[dict[str, Any], str]:
    for name in tiny.splits["meta_train"][3:]:
        tiny.drop(tiny.rows(name))
    tiny.splits["meta_train"] = tiny.splits["meta_train"][:3]
    shape = TASK_POOL["meta_train"]["shape"] | {"n_way": 3}
    changed = {"task_pool": TASK_POOL | {"meta_train": {"shape": shape}}}
    return changed, "lower n_way in params.yaml to 3 or less of task_pool.meta_train"


def lowered_n_query(tiny: TinyDataset) -> tuple[dict[str, Any], str]:
    for name in tiny.splits["meta_val"]:
        tiny.drop(tiny.rows(name)[2:])
    shape = TASK_POOL["meta_val"]["shape"] | {"n_query": 1}
    changed = {"task_pool": TASK_POOL | {"meta_val": {"shape": shape, "n_episodes": 10}}}
    return changed, "lower k_shot and n_query in params.yaml, together to 2 or less of task_pool.meta_val"


def refused_files(tiny: TinyDataset) -> tuple[dict[str, Any], str]:
    reasons = ["not an image", *["truncated"] * 3]
    tiny.quarantined = [Quarantined(source=f"{i}.png", reason=reason) for i, reason in enumerate(reasons)]
    changed = {"validate": {"max_quarantined_share": 0.063}}
    return changed, "mend the files and ingest again, or set validate.max_quarantined_share: 0.063 in params.yaml"


@pytest.mark.parametrize(
    ("check", "provoke"),
    [
        ("classes_per_split", lowered_n_way),
        ("images_per_class", lowered_n_query),
        ("quarantined_share", refused_files),
    ],
)
def test_a_finding_that_settings_resolve_names_the_setting_and_a_value_that_will_do(
    tmp_path: Path, check: str, provoke: Callable[[TinyDataset], tuple[dict[str, Any], str]]
) -> None:
    tiny = tiny_dataset()
    changed, words = provoke(tiny)
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny"))
    result = failures_of(dataset, tiny_params())[check]
    assert result.remedy.command.endswith(words)
    if check == "quarantined_share":
        assert result.found == "6.2%, most often for 'truncated' (3 of 4)"
    assert check not in failures_of(dataset, params_from(raw_params() | changed, source="test"))


def test_bytes_that_were_altered_are_restored_by_the_command(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    dvc = [sys.executable, "-m", "dvc", "--quiet"]
    folder = tiny_dataset().write(tmp_path / "data" / "tiny")
    for command in (["init"], ["add", "data"]):
        subprocess.run([*dvc, *command], cwd=tmp_path, check=True)
    for name, check in (("items-00000.npy", "unaltered_items"), ("items-00001.npy", "shard_layout")):
        stored = np.load(folder / name)
        (folder / name).unlink()
        np.save(folder / name, stored ^ 1 if check == "unaltered_items" else stored.view(np.int8))
        command = failures_of(PackedDataset.open(folder), tiny_params())[check].remedy.command
        assert shlex.split(command)[0] == "dvc"
        subprocess.run([*dvc, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
        assert failures_of(PackedDataset.open(folder), tiny_params()) == {}


def test_all_findings_to_drop_are_taken_from_the_list_at_once_and_warnings_stay(kshot: Kshot, tmp_path: Path) -> None:
    tiny = tiny_dataset(n_classes=6)
    same_in_two_splits(tiny)
    blank(tiny)
    faint(tiny)
    tiny.write(tmp_path / "data" / "tiny")
    with pytest.raises(ValidationError, match="^tiny fails 3 of 24 checks: .*; next: ") as refusal:
        validate.run(tiny_params(), Workspace(tmp_path))
    assert "not_blank (2 items blank), identical_across_splits (1 image in several splits)" in str(refusal.value)
    words = shlex.split(str(refusal.value).rpartition("next: ")[2])
    assert words == ["kshot", "curate", "tiny", "drop", "--list", ".kshot/validate/findings.csv"]
    done = kshot(tmp_path, *words[1:])
    assert "drop of 4 items" in done.stdout, done.stderr
    validate.run(tiny_params(), Workspace(tmp_path))
    assert (tmp_path / "artifacts" / "validate" / "findings.csv").read_text().splitlines() == [
        "check,severity,id,class,split,action",
        "value_range,warning,train/c0/4.png,train/c0,meta_train,may drop",
    ]
    facts = (tmp_path / "artifacts" / "validate" / "facts.json").read_text()
    page = (tmp_path / "artifacts" / "validate" / "report.html").read_text()
    assert '"edit": "drop of 4 items' in facts
    assert "Edits since ingest" in page and "drop of 4 items" in page
    again = kshot(tmp_path, *words[1:])  # the list has the warning alone now
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_findings_are_resolved_one_after_another_without_a_validation_between(kshot: Kshot, tmp_path: Path) -> None:
    tiny = tiny_dataset(n_classes=6)
    same_in_two_splits(tiny)  # which is in two classes, too
    blank(tiny)
    small_class(tiny)
    tiny.write(tmp_path / "data" / "tiny")
    failures = failures_of(PackedDataset.open(tmp_path / "data" / "tiny"), tiny_params())
    with pytest.raises(ValidationError):
        validate.run(tiny_params(), Workspace(tmp_path))
    severities = [line.split(",")[1] for line in (tmp_path / ".kshot/validate/findings.csv").read_text().splitlines()]
    assert severities[1:] == sorted(severities[1:])  # critical, then warning
    commands = [result.remedy.command for result in failures.values() if result.severity == "critical"]
    outputs = [kshot(tmp_path, *shlex.split(command)[1:]) for command in commands]
    assert [done.returncode for done in outputs] == [0] * len(commands)
    assert any(
        "2 of 2 listed items and classes are out already\nnext: kshot validate" in done.stdout for done in outputs
    )
    listed = kshot(tmp_path, "curate", "tiny", "drop", "--list", ".kshot/validate/findings.csv")
    assert (listed.returncode, "out already\nnext: kshot validate" in listed.stdout) == (0, True)
    validate.run(tiny_params(), Workspace(tmp_path))


def test_a_list_of_items_and_classes_is_one_edit_and_all_of_it_or_nothing(kshot: Kshot, tmp_path: Path) -> None:
    folder = tiny_dataset().write(tmp_path / "data" / "tiny")
    (tmp_path / "list.csv").write_text("id,class\ntrain/c0/1.png,train/c0\n,train/c2\n")
    assert kshot(tmp_path, "curate", "tiny", "drop", "--list", "list.csv").returncode == 0
    dataset = PackedDataset.open(folder)
    assert (dataset.n_stored, len(dataset.info.edits), len(dataset.splits.meta_train)) == (54, 1, 3)
    assert str(dataset.info.edits[0]) == "drop of 6 items 'train/c0/1.png', with 1 class 'train/c2'"
    kshot(tmp_path, "curate", "tiny", "undo")
    assert PackedDataset.open(folder).n_stored == 60
    everything = "".join(f",val/c{n}\n" for n in range(4))
    (tmp_path / "list.csv").write_text(f"id,class\ntrain/c0/1.png,train/c0\n{everything}")
    refused = kshot(tmp_path, "curate", "tiny", "drop", "--list", "list.csv")
    assert refused.returncode == 2 and "would leave meta_val without a class" in refused.stderr
    assert PackedDataset.open(folder).n_stored == 60


def test_where_most_items_were_enlarged_smaller_items_are_advised_and_none_is_listed(tmp_path: Path) -> None:
    tiny = tiny_dataset()
    tiny.manifest["width"] = [9, *[12] * 59]
    result = failures_of(PackedDataset.open(tiny.write(tmp_path / "tiny")), tiny_params())["original_size"]
    assert result.remedy.command == "ingest the source again under another name with --image-size 12"
    assert result.remedy.findings.empty


def test_classes_that_are_left_out_do_not_count_where_fewer_are_asked_for(tmp_path: Path) -> None:
    tiny = tiny_dataset()
    small_class(tiny)
    for name in tiny.splits["meta_train"][3:]:
        tiny.drop(tiny.rows(name))
    tiny.splits["meta_train"] = tiny.splits["meta_train"][:3]
    failures = failures_of(PackedDataset.open(tiny.write(tmp_path / "tiny")), tiny_params())
    short = failures["images_per_class"].remedy.findings["class"].tolist()
    n_left = 3 - sum(name.startswith("train/") for name in short)
    assert f"lower n_way in params.yaml to {n_left} or less of task_pool.meta_train" in (
        failures["classes_per_split"].remedy.command
    )


def test_of_items_that_look_alike_no_more_are_dropped_than_needed(tmp_path: Path) -> None:
    tiny = tiny_dataset()
    alike(tiny)  # 0, 7 and 50, each like both others
    result = failures_of(PackedDataset.open(tiny.write(tmp_path / "tiny")), tiny_params())["near_duplicates"]
    rows = result.remedy.findings.set_index("id")["action"]
    assert rows.tolist().count("may drop") == 2 and rows.tolist().count("keep") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("drop",), "found nothing to say which; needed one; next: kshot curate tiny drop ID"),
        (("drop", "x", "--finding", "not_blank"), "found several ways to say which"),
        (("drop", "--finding", "not_blank"), "no findings at .kshot/validate/findings.csv.*next: kshot validate"),
        (("drop", "train/c0/1.pgn"), r"no item 'train/c0/1.pgn'.*did you mean 'train/c0/1.png'\?"),
        (("relabel", "train/c0/1.png"), "next: kshot curate tiny relabel ID --to CLASS"),
        (("move-split", "train/c0", "--to", "practice"), "found split 'practice' after --to; needed one of meta_train"),
        (("move-split", "--to", "val"), "found nothing to say which"),
        (("erase", "--yes"), "found nothing to say which; needed one; next: kshot curate tiny erase --ids ID"),
        (("erase", "--ids", "nobody", "--yes"), "no item 'nobody'"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_exit_2(
    kshot: Kshot, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    tiny_dataset().write(tmp_path / "data" / "tiny")
    done = kshot(tmp_path, "curate", "tiny", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert re.search(message, done.stderr)
    assert PackedDataset.open(tmp_path / "data" / "tiny").info.edits == ()


def test_findings_of_another_dataset_or_check_are_not_taken(kshot: Kshot, tmp_path: Path) -> None:
    tiny = tiny_dataset()
    faint(tiny)
    tiny.write(tmp_path / "data" / "tiny")
    tiny.write(tmp_path / "data" / "other")
    validate.run(tiny_params(), Workspace(tmp_path))
    done = kshot(tmp_path, "curate", "tiny", "drop", "--finding", "blank")
    assert "found nothing to change for 'blank'; needed one of: value_range" in done.stderr
    done = kshot(tmp_path, "curate", "other", "drop", "--finding", "value_range")
    assert "the last validation was of tiny; needed other" in done.stderr


def test_edits_are_listed_with_their_reasons(kshot: Kshot, tmp_path: Path) -> None:
    tiny_dataset().write(tmp_path / "data" / "tiny")
    (tmp_path / "list.txt").write_text("train/c0/1.png\ntrain/c0/2.png\n")
    done = kshot(tmp_path, "curate", "tiny", "drop", "--ids", "list.txt", "--reason", "blurred")
    assert "meta_train  items 20 -> 18, classes 4\n" in done.stdout, done.stderr
    assert "next: kshot validate" in done.stdout
    kshot(tmp_path, "curate", "tiny", "drop", "--class", "train/c1", "train/c2")
    kshot(tmp_path, "curate", "tiny", "undo")
    assert kshot(tmp_path, "curate", "tiny", "history").stdout.splitlines() == [
        "1  drop of 2 items 'train/c0/1.png', 'train/c0/2.png' (blurred)",
        "2  drop of 2 classes 'train/c1', 'train/c2' with 10 items, undone",
        "3  undo of edit 2",
    ]


def test_an_erasure_asks_for_the_name_and_says_what_still_holds_the_items(
    kshot: Kshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "other"):
        tiny_dataset(n_classes=6).write(tmp_path / "data" / name)
    unite(["tiny", "other"], "both", tmp_path / "data", progress=lambda done, total: None)
    validate.run(tiny_params(), Workspace(tmp_path))
    erase = ("curate", "tiny", "erase", "--class", "train/c0")
    monkeypatch.setattr("typer.prompt", lambda question: "no")
    done = kshot(tmp_path, *erase)
    assert (done.returncode, "found 'no'; needed 'tiny', or --yes; nothing was erased" in done.stderr) == (2, True)
    monkeypatch.setattr("typer.prompt", lambda question: "tiny")
    done = kshot(tmp_path, *erase, "--reason", "asked for")
    assert "erased 5 items" in done.stdout, done.stderr
    assert "would bring the items back" in done.stdout
    assert re.search(r"The union both has copies of its own; next: rm -r .*both, then kshot unite", done.stdout)
    assert not (tmp_path / ".kshot" / "validate").exists()
    assert "erasure of 5 items (asked for)" in kshot(tmp_path, "curate", "tiny", "history").stdout


def raw_params() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    return raw | {"dataset": {"name": "tiny"}, "task_pool": TASK_POOL, "validate": {}}
