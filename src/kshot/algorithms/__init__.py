"""Algorithms. To add one: a file here and a name in this union; the contract tests pick it up."""

from typing import Annotated

from pydantic import Field

from kshot.algorithms.anil import ANILConfig
from kshot.algorithms.baseline import BaselineConfig
from kshot.algorithms.bayesian_maml import BayesianMAMLConfig
from kshot.algorithms.boil import BOILConfig
from kshot.algorithms.feat import FEATConfig
from kshot.algorithms.feature_vae import FeatureVAEConfig
from kshot.algorithms.finetune import FinetuneConfig
from kshot.algorithms.hallucinator import HallucinatorConfig
from kshot.algorithms.in_context import InContextConfig
from kshot.algorithms.lda import LDAConfig
from kshot.algorithms.learner import Learner
from kshot.algorithms.linear_probe import LinearProbeConfig
from kshot.algorithms.logistic import LogisticConfig
from kshot.algorithms.maml import MAMLConfig
from kshot.algorithms.mamlpp import MAMLPlusPlusConfig
from kshot.algorithms.matching import MatchingConfig
from kshot.algorithms.meta_sgd import MetaSGDConfig
from kshot.algorithms.protonet import ProtoNetConfig
from kshot.algorithms.r2d2 import R2D2Config
from kshot.algorithms.relation import RelationConfig
from kshot.algorithms.reptile import ReptileConfig
from kshot.algorithms.ridge import RidgeConfig
from kshot.algorithms.siamese import SiameseConfig
from kshot.algorithms.simpleshot import SimpleShotConfig
from kshot.algorithms.tim import TIMConfig
from kshot.algorithms.tip_adapter import TipAdapterConfig
from kshot.algorithms.versa import VERSAConfig

AlgorithmConfig = Annotated[
    ProtoNetConfig
    | MatchingConfig
    | RelationConfig
    | SiameseConfig
    | FEATConfig
    | VERSAConfig
    | HallucinatorConfig
    | FeatureVAEConfig
    | InContextConfig
    | MAMLConfig
    | ANILConfig
    | BOILConfig
    | BayesianMAMLConfig
    | ReptileConfig
    | MetaSGDConfig
    | MAMLPlusPlusConfig
    | R2D2Config
    | LinearProbeConfig
    | SimpleShotConfig
    | RidgeConfig
    | LogisticConfig
    | LDAConfig
    | TipAdapterConfig
    | TIMConfig
    | BaselineConfig
    | FinetuneConfig,
    Field(discriminator="name"),
]

__all__ = [
    "ANILConfig",
    "AlgorithmConfig",
    "BOILConfig",
    "BaselineConfig",
    "BayesianMAMLConfig",
    "FEATConfig",
    "FeatureVAEConfig",
    "FinetuneConfig",
    "HallucinatorConfig",
    "InContextConfig",
    "LDAConfig",
    "Learner",
    "LinearProbeConfig",
    "LogisticConfig",
    "MAMLConfig",
    "MAMLPlusPlusConfig",
    "MatchingConfig",
    "MetaSGDConfig",
    "ProtoNetConfig",
    "R2D2Config",
    "RelationConfig",
    "ReptileConfig",
    "RidgeConfig",
    "SiameseConfig",
    "SimpleShotConfig",
    "TIMConfig",
    "TipAdapterConfig",
    "VERSAConfig",
]
