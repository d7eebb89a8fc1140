"""easyfsl 1.5.0, as in its notebooks/episodic_training.ipynb."""

import torch
from easyfsl.methods import PrototypicalNetworks
from easyfsl.samplers import TaskSampler
from easyfsl.utils import evaluate
from torch.utils.data import DataLoader, Sampler

from bench.measure import Part, Request, serve
from bench.plain import Conv4, LabelledImages
from bench.workloads import Shape

_SCORED_AT_ONCE, _SCORED_STEPS = 10, 5  # episodes per step, and steps at least


def mend() -> tuple[str, ...]:
    """Let TaskSampler be made where torch's Sampler takes no argument any more; say why that was needed."""
    try:
        Sampler.__init__(object.__new__(Sampler), data_source=None)
    except TypeError as error:
        Sampler.__init__ = lambda self, data_source=None: None
        return (f"TaskSampler passes data_source to torch's Sampler: {type(error).__name__}: {error}",)
    return ()


def prepare(request: Request) -> list[Part]:
    images = LabelledImages(request.images)
    return [_part(request, images, shape) for shape in request.workload.shapes]


def _part(request: Request, images: LabelledImages, shape: Shape) -> Part:
    classifier = PrototypicalNetworks(Conv4(request.width, running_statistics=True))
    if request.workload.kind == "evaluate":
        loader = _loader(images, shape, _SCORED_AT_ONCE)
        return Part(
            name=str(shape),
            step=lambda: evaluate(classifier, loader, device="cpu", use_tqdm=False),
            episodes=_SCORED_AT_ONCE,
            min_steps=_SCORED_STEPS,
        )
    episodes = iter(_loader(images, shape, 10**9))
    if request.workload.kind == "sample":
        return Part(name=str(shape), step=lambda: next(episodes), episodes=1)
    classifier.train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()

    def step() -> None:
        support_images, support_labels, query_images, query_labels, _ = next(episodes)
        optimizer.zero_grad()
        classifier.process_support_set(support_images, support_labels)
        loss = criterion(classifier(query_images), query_labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return Part(name=str(shape), step=step, episodes=1)


def _loader(images: LabelledImages, shape: Shape, n_tasks: int) -> DataLoader:
    sampler = TaskSampler(images, n_way=shape.n_way, n_shot=shape.k_shot, n_query=shape.n_query, n_tasks=n_tasks)
    return DataLoader(images, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)


if __name__ == "__main__":
    serve(prepare, notes=mend())
