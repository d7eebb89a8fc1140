"""The episode: an N-way K-shot problem, as a shape and as tensors.

Shapes: B episodes, N way, K shot, Q queries per class, C,H,W one item.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from kshot.errors import EpisodeError
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class EpisodeShape:
    """N classes, K support items and Q query items of each."""

    n_way: Annotated[int, Field(ge=2)]
    k_shot: Annotated[int, Field(ge=1)]
    n_query: Annotated[int, Field(ge=1)]

    @property
    def items_per_class(self) -> int:
        return self.k_shot + self.n_query

    @property
    def key_name(self) -> str:
        """Its name in the key of a pool's draws. It must never change: other words would draw other episodes."""
        return f"{self.n_way}-way {self.k_shot}-shot"

    def __str__(self) -> str:
        return f"{self.n_way}-way {self.k_shot}-shot"


@dataclass(frozen=True, kw_only=True)
class Support:
    """The labelled items of a batch of episodes: x (B, S, *item), y (B, S) int64 in 0..n_way-1.

    keys (B,) as in `EpisodeBatch`; None in serving, where a learner with noise draws from a fixed stream.
    """

    x: Tensor
    y: Tensor
    n_way: int
    keys: Tensor | None = None

    def __post_init__(self) -> None:
        _check_labelled("support", self.x, self.y, self.n_way)


@dataclass(frozen=True, kw_only=True)
class MixedLabels:
    """Labels y (B, Q) of the items that queries were mixed with, and the share (B,) that remains of their own."""

    y: Tensor
    share: Tensor


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch:
    """B episodes of one shape, support and query, ready for a learner.

    support_x (B, N*K, *item) and query_x (B, N*Q, *item) are floating point; support_y and query_y
    are int64 labels in 0..n_way-1. keys (B,) int64 name the random draws of each episode: a learner with noise draws
    from them and nothing else, so that an episode is the same for every number of workers, resume and batching.
    `mixed` has the other labels of queries that were mixed in training.
    Raises EpisodeError when the tensors do not fit together.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    n_way: int
    keys: Tensor
    mixed: MixedLabels | None = None

    def __post_init__(self) -> None:
        _check_labelled("support", self.support_x, self.support_y, self.n_way)
        _check_labelled("query", self.query_x, self.query_y, self.n_way)
        if self.support_x.shape[0] != self.query_x.shape[0]:
            raise EpisodeError(
                f"support holds {self.support_x.shape[0]} episodes, query {self.query_x.shape[0]}; need equal numbers"
            )

    def __len__(self) -> int:
        return self.support_x.shape[0]

    @property
    def support(self) -> Support:
        return Support(x=self.support_x, y=self.support_y, n_way=self.n_way, keys=self.keys)

    def first_classes(self, n_way: int) -> "EpisodeBatch":
        """The same without the classes from label `n_way` on, where all episodes have their items in class order."""
        n_support, n_query = (int((labels[0] < n_way).sum()) for labels in (self.support_y, self.query_y))
        return EpisodeBatch(
            support_x=self.support_x[:, :n_support],
            support_y=self.support_y[:, :n_support],
            query_x=self.query_x[:, :n_query],
            query_y=self.query_y[:, :n_query],
            n_way=min(n_way, self.n_way),
            keys=self.keys,
        )

    def one_by_one(self) -> Iterator["EpisodeBatch"]:
        """The same episodes as batches of one."""
        for i in range(len(self)):
            yield EpisodeBatch(
                support_x=self.support_x[i : i + 1],
                support_y=self.support_y[i : i + 1],
                query_x=self.query_x[i : i + 1],
                query_y=self.query_y[i : i + 1],
                n_way=self.n_way,
                keys=self.keys[i : i + 1],
                mixed=self.mixed and MixedLabels(y=self.mixed.y[i : i + 1], share=self.mixed.share[i : i + 1]),
            )


def _check_labelled(part: str, x: Tensor, y: Tensor, n_way: int) -> None:
    if y.dtype != torch.int64:
        raise EpisodeError(f"{part} labels are {y.dtype}; need torch.int64")
    if x.dim() < 3 or x.shape[:2] != y.shape:
        raise EpisodeError(
            f"{part} items are {tuple(x.shape)} and labels {tuple(y.shape)}; need (B, items, ...) and (B, items)"
        )
    if y.device.type != "cpu":
        return  # to look at the values would wait for the device
    if y.numel() and not (0 <= int(y.min()) and int(y.max()) < n_way):
        raise EpisodeError(f"{part} labels span {int(y.min())}..{int(y.max())}; need 0..{n_way - 1}")
