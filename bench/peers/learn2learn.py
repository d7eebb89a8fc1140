"""learn2learn 0.2.0, as in its examples/vision: protonet_miniimagenet.py, maml_omniglot.py, anil_fc100.py."""

from collections.abc import Callable, Iterator

import learn2learn as l2l
import numpy as np
import torch
from learn2learn.data.transforms import ConsecutiveLabels, FusedNWaysKShots, KShots, LoadData, NWays, RemapLabels
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bench.measure import Part, Request, serve
from bench.plain import Conv4, LabelledImages
from bench.workloads import Shape, Workload

_SCORED_AT_ONCE, _SCORED_STEPS = 10, 5  # episodes per step, and steps at least
_N_TASKS = 20_000  # drawn before tasks repeat


def prepare(request: Request) -> list[Part]:
    workload = request.workload
    images = l2l.data.MetaDataset(LabelledImages(request.images))
    if workload.algorithm == "protonet":
        return [_protonet(workload, images, shape, request.width) for shape in workload.shapes]
    make = {"maml": _maml_step, "fomaml": _maml_step, "anil": _anil_step}[workload.algorithm]
    shape = workload.shapes[0]
    step = make(workload, _few_shot_tasks(images, shape), shape, request.width)
    return [Part(name=str(shape), step=step, episodes=workload.episodes)]


def _protonet(workload: Workload, images, shape: Shape, width: int) -> Part:
    transforms = [
        NWays(images, shape.n_way),
        KShots(images, shape.n_query + shape.k_shot),
        LoadData(images),
        RemapLabels(images),
    ]
    model = Conv4(width, running_statistics=True)
    if workload.kind == "evaluate":
        batches = _endless(DataLoader(l2l.data.Taskset(images, task_transforms=transforms, num_tasks=_N_TASKS)))
        model.eval()

        @torch.no_grad()
        def evaluate() -> None:
            for _ in range(_SCORED_AT_ONCE):
                _prototype_loss(model, next(batches), shape)[1].item()

        return Part(name=str(shape), step=evaluate, episodes=_SCORED_AT_ONCE, min_steps=_SCORED_STEPS)
    loader = DataLoader(l2l.data.Taskset(images, task_transforms=transforms), shuffle=True)
    if workload.kind == "sample":
        return Part(name=str(shape), step=lambda: next(iter(loader)), episodes=1)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train() -> None:
        loss, _ = _prototype_loss(model, next(iter(loader)), shape)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Part(name=str(shape), step=train, episodes=1)


def _endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def _prototype_loss(model: nn.Module, batch: list[Tensor], shape: Shape) -> tuple[Tensor, Tensor]:
    """Loss and accuracy; the example's fast_adapt."""
    data, labels = batch
    order = torch.sort(labels)
    data = data.squeeze(0)[order.indices].squeeze(0)
    labels = labels.squeeze(0)[order.indices].squeeze(0)
    embeddings = model(data)
    is_support = _support_mask(shape)
    support = embeddings[is_support].reshape(shape.n_way, shape.k_shot, -1).mean(dim=1)
    query, labels = embeddings[~is_support], labels[~is_support].long()
    n, m = len(query), len(support)
    logits = -((query.unsqueeze(1).expand(n, m, -1) - support.unsqueeze(0).expand(n, m, -1)) ** 2).sum(dim=2)
    return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean()


def _support_mask(shape: Shape) -> Tensor:
    """The first K of each class in a batch sorted by class."""
    is_support = np.zeros(shape.n_images, dtype=bool)
    for offset in range(shape.k_shot):
        is_support[np.arange(shape.n_way) * (shape.k_shot + shape.n_query) + offset] = True
    return torch.from_numpy(is_support)


def _few_shot_tasks(images, shape: Shape):
    transforms = [
        FusedNWaysKShots(images, n=shape.n_way, k=shape.k_shot + shape.n_query),
        LoadData(images),
        RemapLabels(images),
        ConsecutiveLabels(images),
    ]
    return l2l.data.Taskset(images, task_transforms=transforms, num_tasks=_N_TASKS)


def _maml_step(workload: Workload, tasks, shape: Shape, width: int) -> Callable[[], None]:
    first_order = workload.algorithm == "fomaml"
    maml = l2l.algorithms.MAML(Conv4(width, shape.n_way), lr=0.4, first_order=first_order)
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    is_support = _support_mask(shape)

    def evaluate() -> None:
        learner = maml.clone()
        data, labels = tasks.sample()
        for _ in range(workload.inner_steps):
            learner.adapt(F.cross_entropy(learner(data[is_support]), labels[is_support]))
        (learner(data[~is_support]).argmax(dim=1) == labels[~is_support]).float().mean().item()

    def train() -> None:
        optimizer.zero_grad()
        for _ in range(workload.episodes):
            _learn(maml.clone(), lambda x: x, tasks.sample(), is_support, workload.inner_steps)
        for parameter in maml.parameters():
            parameter.grad.data.mul_(1.0 / workload.episodes)
        optimizer.step()

    return evaluate if workload.kind == "evaluate" else train


def _anil_step(workload: Workload, tasks, shape: Shape, width: int) -> Callable[[], None]:
    features = Conv4(width)
    head = l2l.algorithms.MAML(nn.Linear(width, shape.n_way), lr=0.4)
    parameters = [*features.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    is_support = _support_mask(shape)

    def train() -> None:
        optimizer.zero_grad()
        for _ in range(workload.episodes):
            _learn(head.clone(), features, tasks.sample(), is_support, workload.inner_steps)
        for parameter in parameters:
            parameter.grad.data.mul_(1.0 / workload.episodes)
        optimizer.step()

    return train


def _learn(learner, features, task: tuple[Tensor, Tensor], is_support: Tensor, inner_steps: int) -> None:
    """Adapt, and leave the gradients of the query loss; the examples' fast_adapt."""
    data, labels = features(task[0]), task[1]
    for _ in range(inner_steps):
        learner.adapt(F.cross_entropy(learner(data[is_support]), labels[is_support]))
    predictions = learner(data[~is_support])
    loss = F.cross_entropy(predictions, labels[~is_support])
    (predictions.argmax(dim=1) == labels[~is_support]).float().mean().item()
    loss.backward()
    loss.item()


if __name__ == "__main__":
    serve(prepare)
