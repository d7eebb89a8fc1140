"""What bench.accuracy compares on the glyphs: every learner, and every option of training for one of them.

Both are lists of changes to the preset demo, which meta-trains Prototypical Networks for 600 episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIVE_WAY = ({"n_way": 5, "k_shot": 1}, {"n_way": 5, "k_shot": 5})
SETTINGS = (*FIVE_WAY, {"n_way": 20, "k_shot": 1}, {"n_way": 20, "k_shot": 5})


@dataclass(frozen=True, kw_only=True)
class Row:
    """`changes` are laid over the params of the preset, sections in sections; a list replaces a list."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[Mapping[str, int], ...] = SETTINGS


def _row(title: str, algorithm: Mapping[str, Any], training: Mapping[str, Any], shape: Mapping[str, int]) -> Row:
    return Row(
        title=title,
        changes={
            "task_pool": {"meta_train": {"shape": shape}},
            "meta_train": {"algorithm": algorithm, "training": training},
        },
        settings=SETTINGS if shape["n_way"] >= 20 else FIVE_WAY,
    )


_TWENTY_WAY = {"n_way": 20, "k_shot": 1, "n_query": 5}


def _episodic(name: str, *, n_steps: int = 600, n_query: int = 5) -> Row:
    return _row(name, {"name": name}, {"n_steps": n_steps}, {"n_way": 20, "k_shot": 1, "n_query": n_query})


def _inner_loop(name: str, *, outer_lr: float = 0.001) -> Row:
    """600 steps of 8 episodes."""
    training = {"n_steps": 600, "episodes_per_step": 8, "outer_lr": outer_lr}
    return _row(name, {"name": name}, training, {"n_way": 5, "k_shot": 1, "n_query": 5})


def _head(name: str) -> Row:
    changes = {
        "pretrain": {"name": "supervised", "n_steps": 600},
        "meta_train": {"algorithm": {"name": name}, "initial": "pretrained", "training": {"n_steps": 0}},
    }
    return Row(title=f"ordinary training, {name}", changes=changes)


_REPTILE = {
    "n_steps": 3000,
    "episodes_per_step": 5,
    "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "outer_lr": 1.0,
    "schedule": "linear",
    "validate_every": 500,
}

LEARNERS = (
    *(_episodic(name) for name in ("protonet", "matching", "siamese", "feat", "versa", "hallucinator", "feature_vae")),
    _episodic("r2d2"),
    _row("in_context", {"name": "in_context"}, {"n_steps": 1200, "outer_lr": 0.0005}, _TWENTY_WAY),
    _episodic("relation", n_steps=2000, n_query=10),
    _inner_loop("maml", outer_lr=0.002),
    _inner_loop("anil", outer_lr=0.002),
    *(_inner_loop(name) for name in ("bayesian_maml", "boil", "meta_sgd", "mamlpp")),
    _row("reptile", {"name": "reptile"}, _REPTILE, {"n_way": 5, "k_shot": 8, "n_query": 2}),
    *(_head(name) for name in ("linear_probe", "baseline", "simpleshot", "ridge", "logistic", "lda", "tip_adapter")),
    _head("tim"),
    *(
        Row(title=f"protonet, normalised by {norm}", changes={"backbone": {"norm": norm}})
        for norm in ("task", "group", "layer")
    ),
)


def _augmented(*augmentations: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"meta_train": {"augment": {"support": augmentations}}}


def _trained(**training: Any) -> Mapping[str, Any]:
    return {"meta_train": {"training": training}}


_TURNS = ["90", "180", "270"]

OPTIONS = (
    Row(title="the preset demo"),
    Row(title="twice the steps", changes=_trained(n_steps=1200)),
    Row(title="`views`: each class also turned", changes={"task_pool": {"meta_train": {"views": _TURNS}}}),
    Row(
        title="`views`, twice the steps",
        changes={"task_pool": {"meta_train": {"views": _TURNS}}, "meta_train": {"training": {"n_steps": 1200}}},
    ),
    Row(
        title="`more_shapes`: 5-way 5-shot too",
        changes={"task_pool": {"meta_train": {"more_shapes": [{"n_way": 5, "k_shot": 5, "n_query": 5}]}}},
    ),
    *(
        Row(title=f"`augment`: {name}", changes=_augmented({"name": name}))
        for name in ("affine", "crop", "cutout", "noise", "randaugment")
    ),
    *(
        Row(title=f"`mix`: {name}", changes={"meta_train": {"augment": {"mix": {"name": name}}}})
        for name in ("mixup", "cutmix")
    ),
    Row(
        title="label smoothing 0.1", changes={"meta_train": {"loss": {"name": "cross_entropy", "label_smoothing": 0.1}}}
    ),
    Row(title="focal loss", changes={"meta_train": {"loss": {"name": "focal"}}}),
    Row(title="AdamW, decay 0.01", changes=_trained(optimizer={"name": "adamw"})),
    Row(title="gradients of at most 1", changes=_trained(optimizer={"name": "adam", "clip_norm": 1.0})),
    Row(title="moving average of weights, 0.99", changes=_trained(optimizer={"name": "adam", "ema": 0.99})),
    Row(title="constant learning rate", changes=_trained(schedule="constant")),
    Row(
        title="start from ordinary training",
        changes={"pretrain": {"name": "supervised", "n_steps": 600}, "meta_train": {"initial": "pretrained"}},
    ),
    Row(title="`ensemble`: 3 seeds", changes={"meta_train": {"ensemble": {"name": "seeds", "of": [2, 3]}}}),
    Row(title="`ensemble`: weights of the 3 best", changes={"meta_train": {"ensemble": {"name": "best_k"}}}),
    Row(
        title="`ensemble`: votes of the 3 best",
        changes={"meta_train": {"ensemble": {"name": "best_k", "average": "votes"}}},
    ),
    Row(
        title="`test_time`: 4 affine copies of each item",
        changes={
            "meta_train": {
                "test_time": {side: {"draws": 4, "augment": [{"name": "affine"}]} for side in ("support", "query")}
            }
        },
    ),
)
