import torch
from torch import Tensor

from kshot.algorithms.protonet import ProtoNet
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.evaluation.cost import measure_cost
from tests.toy_episodes import LinearBackbone


class Counting(LinearBackbone):
    """Remembers how many images it was given at a time."""

    def __init__(self) -> None:
        super().__init__(n_inputs=64)
        self.seen: list[int] = []

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        self.seen.append(len(items))
        return super().forward(items.flatten(1), n_reference)


def test_adapting_takes_the_support_set_and_classifying_one_query() -> None:
    torch.manual_seed(0)
    backbone = Counting()
    shape = EpisodeShape(n_way=3, k_shot=2, n_query=5)
    cost = measure_cost(ProtoNet(backbone), ImageKind(image_size=8, channels=1), shape)
    assert set(backbone.seen) == {6, 1}
    assert backbone.seen.count(1) >= 10
    assert cost.adapt_ms > 0 and cost.classify_ms > 0
    assert cost.parameters == 64 * 8 + 8
