"""Any network as a backbone: torchvision's, timm's, a user's own.

Shapes: B items of one episode, R reference items, D features.
"""

from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kshot.backbones.contract import Backbone
from kshot.backbones.layers.conv_block import at_least_float32
from kshot.backbones.layers.norm import ReferenceNorm
from kshot.backbones.layers.pictures import Pictures, without_noise
from kshot.backbones.layers.recompute import blocks, blocks_recomputed
from kshot.data.items import ImageKind
from kshot.data.weights import PretrainedWeights
from kshot.errors import ConfigError

_N_REFERENCE: ContextVar[int | None] = ContextVar("n_reference", default=None)
_PASSES = 4  # to find noise in
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OF_PIXELS = ("network.mean", "network.std")
_AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std of pixels that are not standardised
_WRAPPERS = ("module.", "backbone.", "model.", "encoder.", "network.", "net.")
_STATE_OF_NORMS = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "population_mean",
    "running_var": "population_var",
}


class Adopted(Backbone):
    """A network that maps items (B, *item) to features, (B, D) or maps (B, C, H, W), under the contract of backbones.

    Each batch normalisation of the network is replaced, in place, by one that normalises by the statistics that
    `n_reference` names. Its running averages become the population statistics; with `keep_statistics` these are used
    for every batch and never changed, as suits a pretrained network that is not trained on.
    `example` holds one item or more, (B, *item), where the network lies: the number of features and the memory that an
    item takes are measured on it. Raises ConfigError for a network that draws noise in training, such as dropout: its
    results would depend on the order of episodes.
    """

    def __init__(self, network: nn.Module, example: Tensor, *, keep_statistics: bool = False) -> None:
        super().__init__()
        self.network = _with_reference_norms(network, keep_statistics, {})
        _check_without_noise(self.network, example[:1])
        features, self.bytes_per_item = _measured(self.network, example[:1])
        self.map_shape = (features.shape[1], features.shape[2], features.shape[3]) if features.dim() == 4 else None
        self.n_features = features[0].numel()
        self.recomputes = any(True for _ in blocks(self.network))

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the network as it was written before it was adopted, under the names that it has here.

        The names of a network inside a `Pictures` are those of the network alone.
        """
        inside = "network.network." if isinstance(self.network, Pictures) else "network."
        norms = {name.removeprefix(inside) for name, module in self.named_modules() if isinstance(module, _Norm)}
        found = {}
        for name, tensor in state.items():
            layer, _, last = name.rpartition(".")
            if layer not in norms:
                found[f"{inside}{name}"] = tensor
            elif last in _STATE_OF_NORMS:
                found[f"{inside}{layer}.norm.{_STATE_OF_NORMS[last]}"] = tensor
        return found

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        token = _N_REFERENCE.set(n_reference)
        try:
            with blocks_recomputed(self.network):
                return at_least_float32(self.network(items).flatten(1))
        finally:
            _N_REFERENCE.reset(token)


def adopted_pictures(network: nn.Module, item: ImageKind, input_size: int | None) -> Adopted:
    """A network of three-channel pictures, without its noise, for the items of a dataset; see `Pictures`."""
    example = torch.zeros(1, item.channels, item.image_size, item.image_size)
    return Adopted(Pictures(without_noise(network), input_size), example)


def start_from(backbone: nn.Module, weights: PretrainedWeights) -> None:
    """Load pretrained weights, and how their pixels were standardised, into a backbone.

    Their names may begin with a word such as `module` or `backbone`; what they have beyond the backbone is their
    classifier. Raises ConfigError where a tensor of the backbone is not among them, or has another shape, and where
    they expect standardised pixels of a backbone that does not standardise them.
    """
    needed = {name: tensor for name, tensor in backbone.state_dict().items() if name not in _OF_PIXELS}
    renamed = backbone.renamed if isinstance(backbone, Adopted) else dict
    found = max(
        (renamed(state) for state in _with_and_without_first_words(weights.tensors)),
        key=lambda state: sum(name in state for name in needed),
    )
    wrong = [name for name in needed if name not in found or found[name].shape != needed[name].shape]
    if wrong:
        there = next((name for name in weights.tensors), "none")
        raise ConfigError(
            f"the weights {weights.name} do not fit the backbone: {len(wrong)} of its {len(needed)} tensors are not "
            f"among them in its shape, such as {wrong[0]!r}; they have names such as {there!r}; needed the weights of "
            "this model"
        )
    record = weights.record
    pictures = backbone.network if isinstance(backbone, Adopted) and isinstance(backbone.network, Pictures) else None
    if pictures is None and (record.mean, record.std) != _AS_THEY_ARE:
        raise ConfigError(
            f"the weights {weights.name} expect pixels standardised by mean {record.mean} and std {record.std}, "
            "and this backbone takes them in 0..1 as they are; needed weights for such pixels, or a network of timm or "
            "torchvision; next: where the network standardises by itself, kshot weights add them under another name "
            "with --mean 0,0,0 --std 1,1,1"
        )
    backbone.load_state_dict({name: found[name] for name in needed}, strict=False)
    if pictures is not None:
        pictures.mean.copy_(torch.tensor(record.mean))
        pictures.std.copy_(torch.tensor(record.std))


def _with_and_without_first_words(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The state, and what it is without the word before the first dots of its names, where that is a wrapper's."""
    while True:
        yield tensors
        inside = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(_WRAPPERS)}
        if not inside:
            return
        tensors = inside


class _Norm(nn.Module):
    """Stands where a batch normalisation stood, which its network calls with the items alone.

    `after` is what the old one did to what it had normalised: timm's apply an activation.
    """

    def __init__(self, norm: ReferenceNorm, after: nn.Sequential) -> None:
        super().__init__()
        self.norm = norm
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.after(self.norm(x, _N_REFERENCE.get()))
        return normalised


def _with_reference_norms(module: nn.Module, keep_statistics: bool, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """`made` has the new norm of each old one: a norm that stands in two places stays one."""
    if isinstance(module, _BatchNorm):
        if module not in made:
            made[module] = _adopted_norm(module, keep_statistics)
        return made[module]
    if isinstance(module, _Norm):
        module.norm.frozen = keep_statistics
        return module
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, _with_reference_norms(child, keep_statistics, made))
    return module


@torch.no_grad()
def _adopted_norm(old: _BatchNorm, keep_statistics: bool) -> _Norm:
    """Raise ConfigError for a kind of batch normalisation that does more than its parts say."""
    norm = _Norm(_reference_norm(old, keep_statistics), nn.Sequential(*old.children()))
    if type(old) not in _PLAIN and old.running_mean is not None:
        like, training = old.running_mean, old.training
        x = torch.linspace(-2, 2, 3 * len(like), device=like.device, dtype=like.dtype)
        x = x.view(3, -1, *([1] * 2 if "2d" in type(old).__name__ else []))
        same = torch.allclose(old.eval()(x), norm.eval()(x), atol=1e-4, rtol=1e-3)
        old.train(training)
        if not same:
            raise ConfigError(f"{type(old).__name__} is a batch normalisation of its own; needed one of torch's")
    return norm


def _reference_norm(old: _BatchNorm, keep_statistics: bool) -> ReferenceNorm:
    norm = ReferenceNorm(old.num_features, old.eps)
    norm.frozen = keep_statistics
    like = old.weight if old.affine else old.running_mean
    if like is not None:
        norm.to(device=like.device, dtype=like.dtype)
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
def _check_without_noise(network: nn.Module, item: Tensor) -> None:
    training = network.training
    try:
        first, *others = (network.train()(item) for _ in range(_PASSES))
    finally:
        network.train(training)
    if not all(torch.equal(first, other) for other in others):
        raise ConfigError(
            "the network answers otherwise each time in training, as dropout and stochastic depth make it; need the "
            "same answer, so that episodes are the same in any order; next: set the rates of its dropout to 0"
        )


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
