"""The log of a service, as it writes it, of answers that a test makes up."""

from pathlib import Path

import numpy as np

from kshot.serving.log import AnswerLog, LoggedAnswer
from kshot.serving.service import Answer
from kshot.serving.settings import LogSettings


def log_answers(
    folder: Path, n: int, *, shift: float = 0.0, seed: int = 0, model: str = "models:/m/1", right: int = 0
) -> None:
    """Answers of a service as it writes them; the first `right` are confirmed, and as many after them are corrected."""
    rng = np.random.default_rng(seed)
    log = AnswerLog(folder, LogSettings())
    for number in range(n):
        known = float(rng.normal(-shift, 1))
        answer = Answer(
            class_name="a",
            probability=float(rng.uniform(0.5, 1)),
            probabilities={"a": 1.0},
            unknown=known < -2,
            known=known,
            threshold=-2.0,
            nearest=None,
        )
        features = rng.normal(shift, 1, (1, 4)).astype(np.float32)
        given = LoggedAnswer(
            gallery="parts", model=model, answers=(answer,), features=features, contents=(b"",), latency_ms=1.0
        )
        (named,) = log.answered(given)
        if number < 2 * right:
            log.corrected(named.id, "a" if number < right else "b")
    log.write()
