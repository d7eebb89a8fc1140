"""SimpleShot against nearest centroids by scikit-learn."""

import torch
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from torch import Tensor

from kshot.algorithms.learner import calibrate_learner
from kshot.algorithms.simpleshot import SimpleShot
from kshot.backbones.contract import Flatten
from tests.algorithms.random_features import problems


def test_the_nearest_centroid_of_centred_features_of_unit_length_is_scikit_learns() -> None:
    for problem in problems():
        centre = torch.full((12,), 0.3, dtype=torch.float64)
        learner = SimpleShot(Flatten(), centre)
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        fit = NearestCentroid().fit(normalize(problem.x - centre), problem.y)
        assert logits.argmax(1).tolist() == fit.predict(normalize(problem.queries - centre)).tolist()


def test_the_centre_is_the_mean_feature_of_all_batches_whatever_their_sizes() -> None:
    items = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    learner = SimpleShot(Flatten(), torch.zeros(3))
    calibrate_learner(learner, lambda: torch.split(items, [3, 3, 1]))
    torch.testing.assert_close(learner.centre, items.mean(0))
    calibrate_learner(learner, lambda: [items[:2]])
    torch.testing.assert_close(learner.centre, items[:2].mean(0))


def test_centring_tells_apart_what_a_common_direction_hides() -> None:
    """One large number that all items share leaves their directions almost equal."""
    right = {}
    for name, centre in (("centred", torch.tensor([100.0, 0.0, 0.0])), ("as they are", torch.zeros(3))):
        learner = SimpleShot(Flatten(), centre.double())
        right[name] = float(margin(learner).min())
    assert right["centred"] > 1.0
    assert right["as they are"] < 0.01


def margin(learner: SimpleShot) -> Tensor:
    """How much nearer each of two queries is to its own class."""
    items = torch.tensor([[100.0, 1.0, 0.0], [100.0, 0.0, 1.0]], dtype=torch.float64)
    problem = next(problems(n_way=2, k_shot=1, n_features=3))
    support = type(problem)(x=items, y=problem.y, queries=items).support
    logits = learner.classify(learner.adapt(support), items[None])[0]
    return torch.stack([logits[0, 0] - logits[0, 1], logits[1, 1] - logits[1, 0]])
