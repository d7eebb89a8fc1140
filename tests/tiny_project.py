"""A project folder with a tiny dataset, on which the whole pipeline takes seconds."""

from pathlib import Path
from typing import Any

import yaml

from tests.tiny_dataset import tiny_dataset


def tiny_params() -> dict[str, Any]:
    shape = {"n_way": 3, "k_shot": 1, "n_query": 2}
    return {
        "seed": 1,
        "dataset": {"name": "tiny"},
        "validate": {},
        "task_pool": {
            "meta_train": {"shape": shape},
            "meta_val": {"shape": shape, "n_episodes": 6},
            "meta_test": {
                "n_episodes": 10,
                "n_query": 2,
                "settings": [{"n_way": 3, "k_shot": 1}, {"n_way": 2, "k_shot": 2}],
            },
        },
        "backbone": {"name": "conv4", "width": 4},
        "pretrain": {"name": "none"},
        "pseudo_labels": {"name": "none"},
        "meta_train": {
            "algorithm": {"name": "protonet"},
            "initial": "random",
            "training": {"n_steps": 8, "episodes_per_step": 4, "validate_every": 4, "checkpoint_every_s": 0},
        },
        "evaluate": {},
        "seeds": [],
        "cross_domain": [],
        "process": {"device": "cpu"},
        "register": {"model_name": "tiny", "promotion": {"beat_baselines": False}},  # the images are noise
    }


def write_project(root: Path, params: dict[str, Any]) -> Path:
    """params.yaml and data/tiny under `root`."""
    tiny_dataset(n_classes=5, n_images=6).write(root / "data" / "tiny")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root
