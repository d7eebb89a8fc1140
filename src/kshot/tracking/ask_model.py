"""python -I ask_model.py MODEL CALL ANSWER: what the model in a folder answers, in a process that serves nothing else.

Run by its path and importing nothing of kshot, so that the only kshot here is the source that was registered with the
model. CALL and ANSWER are safetensors files.
"""

import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from safetensors.numpy import load_file, save_file


def main(model: Path, call: Path, answer: Path) -> None:
    found = mlflow.pyfunc.load_model(str(model)).predict(load_file(call))
    save_file({"answer": np.ascontiguousarray(found, dtype=np.float32)}, answer)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
