"""The champion under LitServe, as its guide shows a model with state: adapted once, pictures as base64 in JSON.

python litserve_app.py MODEL SUPPORT PORT: a model folder and class folders of examples.
"""

import base64
import sys
from pathlib import Path

import litserve as ls
import numpy as np
from PIL import Image


class Api(ls.LitAPI):
    def __init__(self, model, support):
        super().__init__()
        self.model, self.support = model, support

    def setup(self, device):
        import torch

        from kshot.serving.classifier import FewShotClassifier

        torch.set_num_threads(1)
        classifier = FewShotClassifier.load(Path(self.model))
        files = sorted(Path(self.support).glob("*/*.png"))
        items = classifier.items([np.asarray(Image.open(file)) for file in files])
        self.item, self.adapted = classifier.item, classifier.adapt(items, [file.parent.name for file in files])

    def decode_request(self, request):
        return self.item.read(base64.b64decode(request["image"])).item

    def predict(self, item):
        found = self.adapted.classify(item[None])
        best = int(found.probabilities[0].argmax())
        return {"class": str(found.labels[best]), "probability": float(found.probabilities[0, best])}

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    model, support, port = sys.argv[1:]
    ls.LitServer(Api(model, support), accelerator="cpu").run(
        port=int(port), log_level="warning", generate_client_file=False
    )
