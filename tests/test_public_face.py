"""The names of `kshot` itself, and the library on plain arrays."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot.errors import EpisodeError
from tests.conftest import REPOSITORY
from tests.tiny_dataset import tiny_dataset
from tests.toy_episodes import separable_points


def test_every_public_name_is_listed_once_and_there() -> None:
    assert sorted(set(kshot.__all__)) == sorted(kshot.__all__)
    assert set(kshot.__all__) == set(kshot._MODULES)
    assert len(kshot.__all__) <= 25
    for name in kshot.__all__:
        found = getattr(kshot, name)
        assert found.__module__ == kshot._MODULES[name], name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(kshot.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == kshot._MODULES


def test_an_unknown_name_is_an_error_like_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'kshot' has no attribute 'Transformer'"):
        kshot.Transformer  # noqa: B018


def test_importing_kshot_loads_no_torch() -> None:
    code = "import sys, kshot; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def points(*classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = separable_points()
    chosen = np.isin(y, classes)
    return x[torch.from_numpy(chosen)], torch.from_numpy(y[chosen])


def test_any_module_is_trained_and_evaluated_on_arrays() -> None:
    torch.manual_seed(0)
    learner = kshot.ProtoNet(kshot.Adopted(nn.Linear(16, 8), points(0)[0]))
    test_x, test_y = points(*range(16, 24))
    before = kshot.evaluate(learner, test_x, test_y, n_way=3, k_shot=1, n_query=4, n_episodes=100)
    shape = kshot.EpisodeShape(n_way=3, k_shot=2, n_query=4)
    best = kshot.train(
        learner,
        *points(*range(12)),
        shape,
        validate_on=points(*range(12, 16)),
        n_steps=200,
        episodes_per_step=2,
        outer_lr=0.03,
    )
    after = kshot.evaluate(learner, test_x, test_y, n_way=3, k_shot=1, n_query=4, n_episodes=100)
    assert best > 0.9
    assert after.mean > before.mean + 0.1
    assert 0 < after.half_width < 0.05


def test_an_evaluation_is_the_same_again_and_another_with_another_seed() -> None:
    learner = kshot.ProtoNet(kshot.Adopted(nn.Linear(16, 4), points(0)[0]))
    x, y = points(*range(8))
    results = [kshot.evaluate(learner, x, y, n_way=3, k_shot=1, n_query=2, n_episodes=50, seed=s) for s in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_labels_that_are_not_one_integer_for_each_item_are_refused() -> None:
    learner = kshot.ProtoNet(kshot.Adopted(nn.Linear(16, 4), points(0)[0]))
    x, y = points(0, 1, 2)
    with pytest.raises(EpisodeError, match="labels are float32 .*; need one integer for each item"):
        kshot.evaluate(learner, x, y.float(), n_way=2, k_shot=1)


def test_the_ten_lines_of_the_readme_run(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(re.findall(r"^(?:from|import) kshot", code, re.MULTILINE)) == 1
    assert code.count("\n") <= 12
    tiny_dataset(n_classes=24, n_images=22).write(tmp_path / "data" / "glyphs")
    quick = code.replace("n_steps=600", "n_steps=2").replace("n_way=20", "n_way=4")
    done = subprocess.run([sys.executable, "-c", quick], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)
