"""What is measured: each workload is one whole step, sampling and optimiser included. Standard library only.

Images are 28x28 grey, the network is Conv4-64 on batch statistics, weights are float32, Adam at 1e-3.
"""

from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["protonet", "maml", "fomaml", "anil"]
Kind = Literal["train", "evaluate", "sample", "draw", "floor"]
"""draw: item numbers of episodes without their images; floor: no episodes, only the network."""

FLOOR_SIZES = (80, 360, 400)  # images, the sizes of the ProtoNet episodes below


@dataclass(frozen=True, kw_only=True)
class Shape:
    """N classes, K support images and Q query images of each."""

    n_way: int
    k_shot: int
    n_query: int = 15

    @property
    def n_images(self) -> int:
        return self.n_way * (self.k_shot + self.n_query)

    def __str__(self) -> str:
        return f"{self.n_way}w{self.k_shot}s"


FIVE_WAY = Shape(n_way=5, k_shot=1)
FOUR_SETTINGS = tuple(Shape(n_way=n_way, k_shot=k_shot) for n_way in (5, 20) for k_shot in (1, 5))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One kind of step; `shapes` has several entries where the work is measured for each of them."""

    name: str
    kind: Kind = "train"
    algorithm: Algorithm = "protonet"
    shapes: tuple[Shape, ...] = (FIVE_WAY,)
    episodes: int = 1  # per step
    inner_steps: int = 1

    @property
    def floor_images(self) -> float | None:
        """Images whose forward and backward pass cost an episode's convolutions; None without a floor.

        A second-order inner step passes three times over a support image: forward and backward, then
        both derivatives of each convolution. ANIL embeds every image once.
        """
        if self.kind != "train":
            return None
        shape = self.shapes[0]
        passes = {"protonet": 1, "anil": 1, "fomaml": self.inner_steps, "maml": 3 * self.inner_steps}[self.algorithm]
        return shape.n_way * (shape.n_query + shape.k_shot * passes)


_WORKLOADS = (
    Workload(name="floor-plain", kind="floor"),
    Workload(name="floor-conv", kind="floor"),
    Workload(name="protonet-5w1s15q"),
    Workload(name="protonet-20w5s15q", shapes=(Shape(n_way=20, k_shot=5),)),
    Workload(name="protonet-60w1s5q", shapes=(Shape(n_way=60, k_shot=1, n_query=5),)),
    Workload(name="maml-1step", algorithm="maml", episodes=16),
    Workload(name="maml-5step", algorithm="maml", episodes=16, inner_steps=5),
    Workload(name="fomaml-1step", algorithm="fomaml", episodes=16),
    Workload(name="anil-1step", algorithm="anil", episodes=16),
    Workload(name="evaluate-protonet", kind="evaluate", shapes=FOUR_SETTINGS),
    Workload(name="evaluate-maml-1step", kind="evaluate", algorithm="maml"),
    Workload(name="sampling", kind="sample", episodes=16),
    Workload(name="memory", algorithm="maml", episodes=32, inner_steps=5),
)
WORKLOADS = {workload.name: workload for workload in _WORKLOADS}
