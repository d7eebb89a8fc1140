"""Pseudo-classes: clusters of the features of meta_train's items, made without their labels.

Hsu, Levine and Finn, "Unsupervised Learning via Meta-Learning" (CACTUs), 2019, algorithm 1: k-means several times, each
time with the dimensions scaled at random, gives several partitions of the same items. An episode draws a partition,
then clusters of it as its classes. As in the authors' code the first partition is of the features as they are, and the
scales of the others are uniform between 0 and 1. Deviations: k-means begins once for each partition, also where there
is only one, and a partition with many small clusters is not made again.

Shapes: I items, D features, P partitions, C clusters of all partitions that are large enough.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from kshot.data.class_table import ClassTable, Int
from kshot.errors import ConfigError, DataError
from kshot.seeding import generator, stream_key
from kshot.settings import STRICT

PARTITIONS_FILE = "partitions.safetensors"
_MOST_STEPS = 3000  # of k-means, as in the authors' code


@settings(frozen=True, kw_only=True, config=STRICT)
class NoPseudoLabels:
    name: Literal["none"] = "none"


@settings(frozen=True, kw_only=True, config=STRICT)
class _Clustering:
    """`n_partitions` times `n_clusters` of the features of meta_train's items.

    `features` are the items' own values (the pixels of an image), or what the backbone that the stage pretrain left
    makes of them: pretrained weights, or a training without labels.
    """

    features: Literal["values", "pretrained"]
    n_clusters: Annotated[int, Field(ge=2)]
    n_partitions: Annotated[int, Field(ge=1)] = 1


@settings(frozen=True, kw_only=True, config=STRICT)
class KMeansClustering(_Clustering):
    """Every step looks at every item: Lloyd's algorithm as scikit-learn has it."""

    name: Literal["kmeans"] = "kmeans"

    def estimator(self, random_state: int) -> Any:
        from sklearn.cluster import KMeans

        return KMeans(self.n_clusters, n_init=1, max_iter=_MOST_STEPS, copy_x=False, random_state=random_state)


@settings(frozen=True, kw_only=True, config=STRICT)
class MiniBatchKMeansClustering(_Clustering):
    """Every step looks at some of the items: for many items, at a little loss.

    Sculley, "Web-Scale K-Means Clustering", 2010, as scikit-learn has it.
    """

    name: Literal["mini_batch_kmeans"] = "mini_batch_kmeans"
    batch_size: Annotated[int, Field(ge=1)] = 1024  # items

    def estimator(self, random_state: int) -> Any:
        from sklearn.cluster import MiniBatchKMeans

        return MiniBatchKMeans(self.n_clusters, n_init=1, batch_size=self.batch_size, random_state=random_state)


AnyClustering = KMeansClustering | MiniBatchKMeansClustering
PseudoLabelConfig = Annotated[NoPseudoLabels | AnyClustering, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class Partitions:
    """The items of meta_train (I,), and the cluster of each in every partition (P, I), below `n_clusters`."""

    items: Int
    clusters: Int
    n_clusters: int

    def to_bytes(self) -> bytes:
        """The file's content: a pure function of the clusters."""
        tensors: dict[str, NDArray[Any]] = {"items": self.items, "clusters": self.clusters.astype(np.int32)}
        return safetensors_bytes(tensors, metadata={"n_clusters": str(self.n_clusters)})

    @property
    def hash(self) -> str:
        """SHA-256 of the file's content, 64 hex digits."""
        return sha256(self.to_bytes()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Partitions":
        """Raises DataError where the file is missing or holds no partitions."""
        try:
            with safe_open(path, framework="numpy") as file:
                items, clusters = (file.get_tensor(name).astype(np.int64) for name in ("items", "clusters"))
                return cls(items=items, clusters=clusters, n_clusters=int(file.metadata()["n_clusters"]))
        except FileNotFoundError:
            raise DataError(f"no pseudo-classes at {path}; next: kshot stage pseudo_labels, or make train") from None
        except Exception as error:
            raise DataError(f"{path} holds no pseudo-classes ({error}); next: kshot stage pseudo_labels") from error


def partitions_of(
    features: NDArray[np.float32],
    items: Int,
    settings: AnyClustering,
    *,
    seed: int,
    at_once: int = 1,
    report: Callable[[int], None] = lambda number: None,
) -> Partitions:
    """Clusters of the features (I, D) of the items (I,); `report` hears how many partitions are there.

    They are the same for any number of partitions `at_once`, because each is made by one thread. Raises ConfigError
    where there are fewer items than clusters.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import ThreadpoolController

    if len(items) < settings.n_clusters:
        raise ConfigError(
            f"pseudo_labels.n_clusters is {settings.n_clusters:,}, and meta_train has {len(items):,} items; need as "
            f"many items as clusters; next: set n_clusters: {max(2, len(items) // 20)}"
        )
    one_thread = ThreadpoolController()

    def clusters_of(number: int) -> NDArray[np.int32]:
        scales = generator(seed, "pseudo_labels", "scales", number).random(features.shape[1], dtype=np.float32)
        scaled = features * (np.ones_like(scales) if number == 0 else scales)
        start = int(stream_key(seed, "pseudo_labels", "start", number)) % 2**32
        with one_thread.limit(limits=1):  # a sum over threads is in the order in which they end
            found: NDArray[np.int32] = settings.estimator(start).fit_predict(scaled)
        return found

    with warnings.catch_warnings(), one_thread.limit(limits=1), ThreadPoolExecutor(at_once) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # of equal items: fewer clusters, which are counted
        clusters = []
        for found in pool.map(clusters_of, range(settings.n_partitions)):
            clusters.append(found.astype(np.int64))
            report(len(clusters))
    return Partitions(items=items, clusters=np.stack(clusters), n_clusters=settings.n_clusters)


def cluster_table(partitions: Partitions, items_per_class: int, *, n_views: int, n_items: int) -> ClassTable:
    """The clusters of at least `items_per_class` items as classes, those of a partition in a row, as a group.

    Each has `n_views`, which are classes of their own: view v of item i of the dataset is item v * n_items + i.
    """
    n_partitions, n_members = partitions.clusters.shape
    n_classes = n_partitions * partitions.n_clusters
    numbered = (partitions.clusters + np.arange(n_partitions)[:, None] * partitions.n_clusters).ravel()
    counts = np.bincount(numbered, minlength=n_classes)
    starts = counts.cumsum() - counts
    members = partitions.items[np.argsort(numbered, kind="stable") % n_members]
    kept = np.flatnonzero(counts >= items_per_class)
    classes, views = np.tile(kept, n_views), np.arange(n_views).repeat(len(kept))
    by_partition = np.argsort(classes // partitions.n_clusters, kind="stable")
    classes, views = classes[by_partition], views[by_partition]
    groups = classes // partitions.n_clusters
    group_sizes = np.bincount(groups, minlength=n_partitions)
    return ClassTable(
        class_ids=views * n_classes + classes,
        items=(np.arange(n_views)[:, None] * n_items + members).ravel(),
        counts=counts[classes],
        groups=groups,
        group_sizes=group_sizes,
        smallest_class=int(counts[classes].min(initial=n_members)),
        largest_class=int(counts[classes].max(initial=1)),
        smallest_group=int(group_sizes.min()),
        largest_group=int(group_sizes.max()),
        starts=views * len(members) + starts[classes],
    )
