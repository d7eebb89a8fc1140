"""kshot: few-shot meta-learning, from a dataset to a served model. These names are its public face.

Inside the package, code imports from the module that defines a thing. A name is imported when it is first used: the
command line need not load torch to say what a command does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.algorithms.anil import ANIL, ANILConfig
    from kshot.algorithms.learner import Learner, MetaLearner, Problem, TransferLearner
    from kshot.algorithms.linear_probe import LinearProbe
    from kshot.algorithms.maml import MAML, MAMLConfig
    from kshot.algorithms.protonet import ProtoNet
    from kshot.backbones.contract import Backbone, calibrate
    from kshot.backbones.conv4 import Conv4
    from kshot.backbones.layers.adopted import Adopted
    from kshot.data.packed import PackedDataset
    from kshot.episodes.episode import EpisodeBatch, EpisodeShape, Support
    from kshot.model import load_model
    from kshot.on_arrays import arrays, evaluate, train
    from kshot.serving.classifier import FewShotClassifier

_MODULES = {
    "ANIL": "kshot.algorithms.anil",
    "ANILConfig": "kshot.algorithms.anil",
    "Adopted": "kshot.backbones.layers.adopted",
    "Backbone": "kshot.backbones.contract",
    "Conv4": "kshot.backbones.conv4",
    "EpisodeBatch": "kshot.episodes.episode",
    "EpisodeShape": "kshot.episodes.episode",
    "FewShotClassifier": "kshot.serving.classifier",
    "Learner": "kshot.algorithms.learner",
    "LinearProbe": "kshot.algorithms.linear_probe",
    "MAML": "kshot.algorithms.maml",
    "MAMLConfig": "kshot.algorithms.maml",
    "MetaLearner": "kshot.algorithms.learner",
    "PackedDataset": "kshot.data.packed",
    "Problem": "kshot.algorithms.learner",
    "ProtoNet": "kshot.algorithms.protonet",
    "Support": "kshot.episodes.episode",
    "TransferLearner": "kshot.algorithms.learner",
    "arrays": "kshot.on_arrays",
    "calibrate": "kshot.backbones.contract",
    "evaluate": "kshot.on_arrays",
    "load_model": "kshot.model",
    "train": "kshot.on_arrays",
}

__all__ = [
    "ANIL",
    "MAML",
    "ANILConfig",
    "Adopted",
    "Backbone",
    "Conv4",
    "EpisodeBatch",
    "EpisodeShape",
    "FewShotClassifier",
    "Learner",
    "LinearProbe",
    "MAMLConfig",
    "MetaLearner",
    "PackedDataset",
    "Problem",
    "ProtoNet",
    "Support",
    "TransferLearner",
    "arrays",
    "calibrate",
    "evaluate",
    "load_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
