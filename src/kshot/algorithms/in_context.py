"""In-context learning: a transformer reads the support set and a query as one sequence.

Shapes: B episodes, S support items, Q query items, N way, D features, W width, H heads.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_HIDDEN = 2  # times the width, between the two maps of a layer


@settings(frozen=True, kw_only=True, config=STRICT)
class InContextConfig:
    name: Literal["in_context"] = "in_context"
    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    width_per_head: Annotated[int, Field(ge=1)] = 32
    scale: Annotated[float, Field(gt=0)] = 10.0  # of the cosines, where learning starts

    about: ClassVar[About] = About(
        use="features of a frozen encoder and many classes to learn from; an answer takes no gradient",
        cost="trains like protonet; attention between the examples once, and from a query to the examples",
        source="Fifty et al. 2024",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "InContext":
        return InContext(backbone, Reader(backbone.n_features, self), loss)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a support set amounts to: its tokens before each layer (B, S, W), and class means after all (B, N, W)."""

    tokens: tuple[Tensor, ...]
    classes: Tensor


class InContext(MetaLearner[Read]):
    """A small transformer reads the examples and a query, and the query goes to the class it then resembles most.

    Fifty et al., "Context-Aware Meta-Learning", 2024, section 4, after Mishra et al., "A Simple Neural Attentive
    Meta-Learner", 2018: an item is a token, and what a query means is settled by attention to the examples.

    Deviations: the paper adds to each example a fixed vector for its label (ELMES), which bounds the number of classes,
    and is trained to bear their permutation. Here examples know which others are of their class by a learned term in
    their attention, and the answer is the cosine to the class means of the last layer; so any number of classes can be
    asked, and relabelling them relabels the answers exactly. Queries read the examples and not one another, and the
    examples read no query, so they are read once for any number of queries.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(self, backbone: nn.Module, reader: "Reader", loss: EpisodeLoss = query_cross_entropy) -> None:
        super().__init__()
        self.backbone = backbone
        self.reader = reader
        self.loss = loss

    def adapt(self, support: Support) -> Read:
        return self.reader.read(embed_alone(self.backbone, support.x), support.y, support.n_way)

    def classify(self, adapted: Read, query_x: Tensor) -> Tensor:
        return self.reader.logits(adapted, embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            read = self.reader.read(support, episodes.support_y, episodes.n_way)
            return self.loss(self.reader.logits(read, query), episodes)

    def on_features(self) -> "InContext":
        return InContext(Flatten(), self.reader, self.loss)


class Reader(nn.Module):
    """The transformer: tokens from features, its layers, and the scale of the cosines."""

    def __init__(self, n_features: int, config: InContextConfig) -> None:
        super().__init__()
        width = config.heads * config.width_per_head
        self.token = nn.Linear(n_features, width)
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.log_scale = nn.Parameter(torch.tensor(config.scale).log())

    def read(self, features: Tensor, labels: Tensor, n_way: int) -> Read:
        """Of support features (B, S, D) with labels (B, S)."""
        same = labels[:, :, None] == labels[:, None, :]
        x = self.token(features)
        tokens = []
        for layer in self.layers:
            tokens.append(x)
            x = layer(x, x, same)
        return Read(tokens=tuple(tokens), classes=prototypes(x, labels, n_way))

    def logits(self, read: Read, features: Tensor) -> Tensor:
        """(B, Q, N) of query features (B, Q, D)."""
        x = self.token(features)
        for layer, examples in zip(self.layers, read.tokens, strict=True):
            x = layer(x, examples)
        cosines = F.normalize(x, dim=2) @ F.normalize(read.classes, dim=2).mT
        scaled: Tensor = self.log_scale.exp() * cosines
        return scaled


class Layer(nn.Module):
    """Tokens read the examples and are then mapped one by one, each added to what entered, which is normalised first.

    Vaswani et al., "Attention Is All You Need", 2017, in the order of Xiong et al., 2020.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_of_tokens, self.norm_between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.of_query, self.of_key, self.of_value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.of_same_class = nn.Parameter(torch.zeros(n_heads))
        self.map = nn.Sequential(nn.Linear(width, _HIDDEN * width), nn.GELU(), nn.Linear(_HIDDEN * width, width))

    def forward(self, tokens: Tensor, examples: Tensor, same: Tensor | None = None) -> Tensor:
        """(B, I, W) -> (B, I, W). `same` (B, I, S): which examples (B, S, W) are of a token's class, where known."""
        read, written = self.norm_of_tokens(tokens), self.norm_of_tokens(examples)
        query, key, value = (
            self._by_head(of(x)) for of, x in ((self.of_query, read), (self.of_key, written), (self.of_value, written))
        )
        bias = None
        if same is not None:
            bias = self.of_same_class[:, None, None] * same[:, None].to(tokens.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = tokens + self.output(attended.transpose(1, 2).flatten(2))
        mapped: Tensor = x + self.map(self.norm_between(x))
        return mapped

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, I, W) -> (B, H, I, W / H)"""
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)
