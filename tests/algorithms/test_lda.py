"""Linear discriminant analysis against scikit-learn's."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

from kshot.algorithms.lda import LDA, LDAConfig
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import problems


@pytest.mark.parametrize("shrinkage", [0.1, 1.0])
@pytest.mark.parametrize("k_shot", [2, 5], ids=["fewer items than features", "more items than features"])
def test_probabilities_are_scikit_learns(k_shot: int, shrinkage: float) -> None:
    learner = LDA(Flatten(), LDAConfig(shrinkage=shrinkage))
    for problem in problems(k_shot=k_shot):
        plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        plain.fit(F.normalize(problem.x).numpy(), problem.y.numpy())
        expected = torch.from_numpy(plain.predict_proba(F.normalize(problem.queries).numpy()))
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0].softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_classes_are_equally_likely_however_many_items_they_have() -> None:
    """scikit-learn's are as likely as they are frequent: the logits differ by the logarithm of that."""
    learner = LDA(Flatten(), LDAConfig())
    for problem in problems():
        x, y = problem.x[:-3], problem.y[:-3]
        plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(F.normalize(x).numpy(), y.numpy())
        expected = torch.from_numpy(plain.predict_proba(F.normalize(problem.queries).numpy()))
        head = learner.adapt(Support(x=x[None], y=y[None], n_way=4))
        logits = learner.classify(head, problem.queries[None])[0] + torch.bincount(y).double().log()
        torch.testing.assert_close(logits.softmax(1), expected, rtol=1e-8, atol=1e-10)


def test_with_one_item_per_class_the_nearest_wins() -> None:
    learner = LDA(Flatten(), LDAConfig())
    for problem in problems(k_shot=1):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        nearest = torch.cdist(F.normalize(problem.queries), F.normalize(problem.x)).argmin(1)
        assert logits.argmax(1).tolist() == nearest.tolist()
