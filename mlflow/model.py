"""The registered model, as code: MLflow runs this file whenever the model is loaded.

Beside it lie kshot's source as it was at registration, model.json and weights.safetensors. Nothing is
unpickled, and the weights are checked against the SHA-256 that was registered before they are read. In
a process that has imported kshot before, that kshot is used in place of the source beside the model.
"""

import warnings
from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from kshot.serving.classifier import FewShotClassifier

# MLflow asks for a type hint of rows on model_input, whatever the filters; the signature says it better.
with warnings.catch_warnings(record=True):

    class FewShotModel(PythonModel):
        """Labelled support images and query images in, probabilities (Q, N) float32 out.

        Column n belongs to the n-th smallest of the distinct support labels. Sizes are free: images
        are resized as at ingest, and classes may have different numbers of support images.
        """

        def load_context(self, context):
            folder, weights_sha256 = Path(context.artifacts["model"]), context.model_config["weights_sha256"]
            self._classifier = FewShotClassifier.load(folder, weights_sha256=weights_sha256)

        def predict(self, context, model_input, params=None):
            """model_input holds support_images, support_labels and query_images by name."""
            return self._classifier.predict(**model_input).probabilities


set_model(FewShotModel())
