import torch

from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support


def test_prototypes_are_class_means_also_with_unequal_shots() -> None:
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]])
    found = prototypes(features, torch.tensor([[0, 0, 1]]), 2)
    assert found.tolist() == [[[1.0, 0.0], [5.0, 5.0]]]


def test_logits_are_minus_squared_distances_to_the_prototypes() -> None:
    support = Support(x=torch.tensor([[[0.0, 0.0], [4.0, 0.0]]]), y=torch.tensor([[0, 1]]), n_way=2)
    learner = ProtoNet(Flatten())
    logits = learner.classify(learner.adapt(support), torch.tensor([[[1.0, 2.0]]]))
    assert logits.tolist() == [[[-5.0, -13.0]]]


def test_distances_agree_with_the_direct_formula() -> None:
    torch.manual_seed(0)
    queries, centres = torch.randn(2, 5, 7), torch.randn(2, 3, 7)
    direct = (queries[:, :, None] - centres[:, None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(queries, centres), direct)
