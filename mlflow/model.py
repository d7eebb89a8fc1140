"""The registered model, as code: MLflow runs this file whenever the model is loaded.

Beside it lie kshot's source as it was at registration, model.json and weights.safetensors. Nothing is
unpickled, and the weights are checked against the SHA-256 that was registered before they are read. In
a process that has imported kshot before, that kshot is used in place of the source beside the model.
"""

import json
import warnings
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from kshot.errors import UserError
from kshot.serving.classifier import FewShotClassifier


class Refused(MlflowException):
    """The call was refused. A scoring server puts the whole input before the message: here it stays the message."""

    def serialize_as_json(self):
        return json.dumps({"error_code": self.error_code, "message": str(self.args[0])})


# MLflow asks for a type hint of rows on model_input, whatever the filters; the refusals of the call say it better.
with warnings.catch_warnings(record=True):

    class FewShotModel(PythonModel):
        """Labelled support items and query items in; out comes a table of a row per query and a column per class.

        Sizes are free: images are resized as at ingest, and classes may have different numbers of support items.
        """

        def load_context(self, context):
            folder, weights_sha256 = Path(context.artifacts["model"]), context.model_config["weights_sha256"]
            self._classifier = FewShotClassifier.load(folder, weights_sha256=weights_sha256)

        def predict(self, context, model_input, params=None):
            """model_input holds support_items, support_labels and query_items by name, as arrays or lists."""
            try:
                return self._classifier.answer(model_input)
            except UserError as error:
                raise Refused(str(error), error_code=INVALID_PARAMETER_VALUE) from error


set_model(FewShotModel())
