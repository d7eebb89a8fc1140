"""Any network as a backbone: torchvision's, timm's, a user's own.

Shapes: B items of one episode, R reference items, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kshot.backbones.contract import Backbone
from kshot.backbones.layers.conv_block import at_least_float32
from kshot.backbones.layers.norm import ReferenceNorm
from kshot.errors import ConfigError


class Adopted(Backbone):
    """A network that maps items (B, *item) to features, (B, D) or maps (B, C, H, W), under the contract of backbones.

    Each batch normalisation of the network is replaced, in place, by one that normalises by the statistics that
    `n_reference` names. Its running averages become the population statistics; with `keep_statistics` these are used
    for every batch and never changed, as suits a pretrained network that is not trained on.
    `example` holds one item or more, (B, *item): the number of features and the memory that an item takes are measured
    on it. Raises ConfigError for a network with dropout, whose noise would depend on the order of episodes.
    """

    def __init__(self, network: nn.Module, example: Tensor, *, keep_statistics: bool = False) -> None:
        super().__init__()
        dropouts = [name for name, module in network.named_modules() if isinstance(module, _DropoutNd) and module.p > 0]
        if dropouts:
            raise ConfigError(
                f"the network has dropout ({dropouts[0]}); need none, for episodes that are the same in any order; "
                f"next: set its p to 0"
            )
        self._reference = _Reference()
        self.network = _with_reference_norms(network, self._reference, keep_statistics)
        features, self.bytes_per_item = _measured(self.network, example[:1])
        self.map_shape = (features.shape[1], features.shape[2], features.shape[3]) if features.dim() == 4 else None
        self.n_features = features[0].numel()

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        self._reference.n = n_reference
        return at_least_float32(self.network(items).flatten(1))


@dataclass
class _Reference:
    """What the norms of one network are told before each pass: the number of reference items."""

    n: int | None = None


class _Norm(nn.Module):
    """Stands where a batch normalisation stood, which its network calls with the items alone."""

    def __init__(self, norm: ReferenceNorm, reference: _Reference) -> None:
        super().__init__()
        self.norm = norm
        self._reference = reference

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x, self._reference.n)
        return normalised


def _with_reference_norms(module: nn.Module, reference: _Reference, keep_statistics: bool) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return _Norm(_reference_norm(module, keep_statistics), reference)
    for name, child in module.named_children():
        setattr(module, name, _with_reference_norms(child, reference, keep_statistics))
    return module


def _reference_norm(old: _BatchNorm, keep_statistics: bool) -> ReferenceNorm:
    norm = ReferenceNorm(old.num_features, old.eps)
    norm.frozen = keep_statistics
    if old.running_mean is not None and old.running_var is not None:
        norm.population_mean.copy_(old.running_mean)
        norm.population_var.copy_(old.running_var)
    if old.affine:
        norm.weight, norm.bias = old.weight, old.bias
    else:
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad_(False)
    return norm


@torch.no_grad()
def _measured(network: nn.Module, item: Tensor) -> tuple[Tensor, int]:
    """The output for one item, and the largest sum of bytes that enter and leave one of its layers."""
    largest = 0

    def measure(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        tensors = [one for one in (*inputs, output) if isinstance(one, Tensor)]
        largest = max(largest, sum(one.numel() * one.element_size() for one in tensors))

    leaves = [module for module in network.modules() if not any(module.children())]
    handles = [module.register_forward_hook(measure) for module in leaves]
    training = network.training
    try:
        output: Tensor = network.eval()(item)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return output, max(largest, output.numel() * output.element_size())
