"""What a saved model answers on the frozen episodes of tests, asked one by one as a user would."""

import numpy as np

from kshot.config import load_params
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.model import load_model
from kshot.serving.classifier import FewShotClassifier
from kshot.workspace import Workspace


def accuracies_served(workspace: Workspace) -> list[float]:
    """By setting, in the order of their pools."""
    dataset = PackedDataset.open(workspace.dataset("tiny"))
    frozen = read_frozen(workspace.output("task_pool"), dataset, load_params(workspace.params).task_pool)
    classifier = FewShotClassifier(load_model(workspace.model))
    found = []
    for name in frozen.kinds:
        right = []
        for support, query in zip(frozen.test[name].indices.support, frozen.test[name].indices.query, strict=True):
            labels = np.repeat(np.arange(len(support)), support.shape[1])
            answer = classifier.predict(dataset.gather(support.ravel()), labels, dataset.gather(query.ravel()))
            expected = np.repeat(np.arange(len(query)), query.shape[1])
            right.append((answer.probabilities.argmax(1) == expected).mean())
        found.append(float(np.mean(right)))
    return found
