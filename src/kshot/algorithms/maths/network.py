"""A backbone with a linear head, of which each episode has weights of its own: what MAML and its kin adapt.

Shapes: B episodes, S support items, I items of one episode, N way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kshot.algorithms.maths.fast_weights import Weights, embed_under, for_each, leaves, of_episode, with_gradients
from kshot.algorithms.maths.heads import check_max_way
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, full_precision
from kshot.backbones.contract import norm_parameters, recorded_statistics
from kshot.episodes.episode import EpisodeBatch, Support

_HEAD_WEIGHT, _HEAD_BIAS, BACKBONE = "head.weight", "head.bias", "backbone."
HEAD = (_HEAD_WEIGHT, _HEAD_BIAS)


@dataclass(frozen=True, kw_only=True)
class AdaptedWeights:
    """Weights of B episodes, (B, *shape) by name, with the statistics of each support set as the backbone's buffers.

    Where the queries are normalised by themselves there are no such buffers among them.
    """

    weights: Weights


@dataclass(frozen=True, kw_only=True)
class Network:
    """The head has one row for each class of a training episode; an episode of fewer classes uses the first rows.

    Weights are named as the learner's that has the backbone and the head as members of these names.
    """

    algorithm: str  # for errors
    backbone: nn.Module
    head: nn.Linear

    def trained(self, n_episodes: int, n_way: int) -> Weights:
        """The weights that are trained, for each episode: where an inner loop starts."""
        return self.of_each(self.parameters(trained=True), n_episodes, n_way)

    def parameters(self, *, trained: bool) -> Weights:
        """Those that are trained or those that are frozen, by name and in their own shapes."""
        weights: Weights = {BACKBONE + name: parameter for name, parameter in self.backbone.named_parameters()}
        weights |= {_HEAD_WEIGHT: self.head.weight, _HEAD_BIAS: self.head.bias}
        return {name: weight for name, weight in weights.items() if weight.requires_grad == trained}

    def norms(self) -> tuple[str, ...]:
        """The names of scales and shifts of the backbone's normalisation."""
        return tuple(BACKBONE + name for name in norm_parameters(self.backbone))

    def of_each(self, of_parameters: Weights, n_episodes: int, n_way: int) -> Weights:
        """Tensors of the shapes of the parameters, or of their derivatives or rates, for each episode."""
        check_max_way(self.algorithm, n_way, self.head.out_features)
        return for_each({name: w[:n_way] if name in HEAD else w for name, w in of_parameters.items()}, n_episodes)

    def support_loss(self, weights: Weights, support: Support) -> Tensor:
        """The sum over the episodes, each normalised by its support set."""
        weights = weights | self._frozen(len(support.x), support.n_way)
        return cross_entropy(self.logits(weights, support.x, support.x.shape[1]), support.y).sum()

    def query_losses(
        self, adapted: Weights, episodes: EpisodeBatch, loss: EpisodeLoss, *, query_statistics: bool
    ) -> Tensor:
        """(B,) of the queries under the adapted weights of each episode, differentiable with respect to these.

        The query pass is differentiated at the adapted weights and its graph dropped, episode by episode; its gradient
        then goes back through the inner loop alone. By the chain rule that is the meta-gradient.
        """
        losses = []
        by_weight = [torch.empty_like(weight) for weight in adapted.values()]  # torch.cat loses their strides
        for i, episode in enumerate(episodes.one_by_one()):
            of_one, gradients = self._query_gradients(of_episode(adapted, i), episode, loss, query_statistics)
            losses.append(of_one)
            for of_all, gradient in zip(by_weight, gradients, strict=True):
                of_all[i : i + 1] = gradient
        return with_gradients(torch.cat(losses), by_weight, adapted)

    def adapted(self, weights: Weights, support: Support, *, query_statistics: bool) -> AdaptedWeights:
        """All that `classify` needs, from the weights that were adapted."""
        weights = weights | self._frozen(len(support.x), support.n_way)
        if not query_statistics:
            weights |= self._statistics(weights, support.x)
        return AdaptedWeights(weights=weights)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor, *, query_statistics: bool) -> Tensor:
        """Logits (B, I, N) of queries (B, I, *item)."""
        n_reference = query_x.shape[1] if query_statistics else None
        logits = [
            self.logits(of_episode(adapted.weights, i), query[None], n_reference) for i, query in enumerate(query_x)
        ]
        return torch.cat(logits)

    def logits(self, weights: Weights, items: Tensor, n_reference: int | None) -> Tensor:
        """(B, I, N) of items (B, I, *item), each episode under its own weights."""
        features = embed_under(self.backbone, _of_backbone(weights), items, n_reference)
        with full_precision(features):
            return torch.baddbmm(weights[_HEAD_BIAS][:, None], features, weights[_HEAD_WEIGHT].transpose(1, 2))

    def _frozen(self, n_episodes: int, n_way: int) -> Weights:
        return self.of_each(self.parameters(trained=False), n_episodes, n_way)

    def _query_gradients(
        self, adapted: Weights, episode: EpisodeBatch, loss: EpisodeLoss, query_statistics: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss (1,) of one episode's queries, and its gradients with respect to the adapted weights."""
        trained = leaves(adapted)
        weights = trained | self._frozen(1, episode.n_way)
        if query_statistics:
            logits = self.logits(weights, episode.query_x, episode.query_x.shape[1])
        else:  # the support set goes first: the gradient goes through its statistics too
            n_support = episode.support_x.shape[1]
            both = torch.cat([episode.support_x, episode.query_x], dim=1)
            logits = self.logits(weights, both, n_support)[:, n_support:]
        losses = loss(logits, episode)
        return losses.detach(), torch.autograd.grad(losses.sum(), list(trained.values()))

    def _statistics(self, weights: Weights, support_x: Tensor) -> Weights:
        """The statistics of each support set under its own weights, by the name of the backbone's buffer."""
        by_episode = []
        for i, items in enumerate(support_x):
            with recorded_statistics(self.backbone) as statistics:
                embed_under(self.backbone, _of_backbone(of_episode(weights, i)), items[None], len(items))
            by_episode.append(statistics())
        return {BACKBONE + name: torch.stack([one[name] for one in by_episode]) for name in by_episode[0]}


def _of_backbone(weights: Weights) -> Weights:
    return {name.removeprefix(BACKBONE): w for name, w in weights.items() if name.startswith(BACKBONE)}
