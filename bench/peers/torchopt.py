"""torchopt 0.7.3, as in its examples/few-shot/maml_omniglot.py."""

import torch
import torchopt
from torch.nn import functional as F

from bench.measure import Part, Request, serve
from bench.plain import Conv4, numpy_episodes


def prepare(request: Request) -> list[Part]:
    workload, shape = request.workload, request.workload.shapes[0]
    batches = numpy_episodes(request.images, shape, workload.episodes)
    network = Conv4(request.width, shape.n_way)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    inner = torchopt.MetaSGD(network, lr=0.4)

    def step() -> None:
        optimizer.zero_grad()
        network_state = torchopt.extract_state_dict(network, by="reference", detach_buffers=True)
        inner_state = torchopt.extract_state_dict(inner, by="reference")
        for support_x, support_y, query_x, query_y in zip(*next(batches), strict=True):
            for _ in range(workload.inner_steps):
                inner.step(F.cross_entropy(network(support_x), support_y))
            logits = network(query_x)
            (logits.argmax(dim=1) == query_y).sum().item()
            F.cross_entropy(logits, query_y).backward()
            torchopt.recover_state_dict(network, network_state)
            torchopt.recover_state_dict(inner, inner_state)
        optimizer.step()

    return [Part(name=str(shape), step=step, episodes=workload.episodes)]


if __name__ == "__main__":
    serve(prepare)
