"""A project folder: every path in it, in one place.

What a person writes lies in the root, data and artifacts are DVC's, and `.kshot` holds what a run leaves behind.
"""

from dataclasses import dataclass
from pathlib import Path

from kshot.errors import ConfigError

STATE, ARTIFACTS, DATA = Path(".kshot"), Path("artifacts"), Path("data")
_RUNNING = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Workspace:
    """The paths of the project folder `root`; none of them needs to exist."""

    root: Path

    @classmethod
    def nearest(cls, start: Path = Path()) -> "Workspace":
        """The nearest folder at or above `start` with a graph and settings; `start` where there is none."""
        for folder in (start, *start.resolve().parents):
            found = cls(folder)
            if found.graph.is_file() and (found.params.is_file() or found.presets.is_dir()):
                return found
        return cls(start)

    @classmethod
    def find(cls, start: Path = Path()) -> "Workspace":
        """The nearest one, for a command that works on it.

        Raises ConfigError where that project has a source of its own and another one runs: the environment of a
        copied project still runs the original's.
        """
        found = cls.nearest(start)
        if (own := found.source).is_dir() and not own.samefile(_RUNNING):
            raise ConfigError(
                f"kshot runs from {_RUNNING}, and {found.root.resolve()} has its own source; need that one; "
                f"next: make -C {found.root.resolve()} setup, then its .venv/bin/kshot"
            )
        return found

    # what a person writes

    @property
    def source(self) -> Path:
        """kshot itself, in a clone of it; not there in a project that uses an installed one."""
        return self.root / "src" / "kshot"

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def presets(self) -> Path:
        return self.root / "presets"

    @property
    def graph(self) -> Path:
        """The stages, which DVC runs."""
        return self.root / "dvc.yaml"

    @property
    def model_code(self) -> Path:
        return self.root / "mlflow" / "model.py"

    @property
    def model_card(self) -> Path:
        return self.root / "mlflow" / "model_card.md.j2"

    # what DVC keeps

    @property
    def receipt(self) -> Path:
        """dvc.lock: the hashes of all that the last run read and wrote."""
        return self.root / "dvc.lock"

    @property
    def data(self) -> Path:
        return self.root / DATA

    @property
    def data_pointer(self) -> Path:
        return self.root / "data.dvc"

    def dataset(self, name: str) -> Path:
        return self.data / name

    def pretrained_weights(self, name: str) -> Path:
        return self.data / "weights" / name

    @property
    def artifacts(self) -> Path:
        return self.root / ARTIFACTS

    def output(self, stage: str) -> Path:
        """What a stage writes. A stage of several items has a folder for each: `cross_domain@NAME`."""
        return self.artifacts.joinpath(*stage.split("@"))

    @property
    def model(self) -> Path:
        """The trained learner."""
        return self.output("meta_train") / "model"

    @property
    def weights(self) -> Path:
        return self.model / "weights.safetensors"

    @property
    def pretrained_model(self) -> Path:
        """What the pretrain stage trained; not there where it was asked for none."""
        return self.output("pretrain") / "pretrained"

    # what a run leaves behind

    @property
    def state(self) -> Path:
        return self.root / STATE

    @property
    def checkpoints(self) -> Path:
        return self.state / "checkpoints"

    @property
    def features(self) -> Path:
        """Of backbones that nothing trains any more, by weights and dataset."""
        return self.state / "features"

    @property
    def packages(self) -> Path:
        """Packages that built-in datasets are made from, as they were fetched."""
        return self.state / "packages"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def validation(self) -> Path:
        """Facts and report of the last validation, which outlive a failed stage."""
        return self.state / "validate"

    @property
    def training_speed(self) -> Path:
        """Throughput and memory of the last training here."""
        return self.state / "meta_train" / "speed.json"

    @property
    def registry_database(self) -> Path:
        return self.state / "mlflow.db"

    @property
    def registry_artifacts(self) -> Path:
        return self.state / "mlartifacts"

    @property
    def fetched_models(self) -> Path:
        """Models of a registry on another machine."""
        return self.state / "models"

    def report(self, name: str, version: int) -> Path:
        """The page of a registered version."""
        return self.state / "reports" / f"{name}-{version}" / "report.html"

    def export(self, name: str) -> Path:
        """A model that was exported, where no other folder was named."""
        return self.state / "exports" / name

    def rerun(self, name: str, version: int) -> Path:
        return self.state / "reruns" / f"{name}-{version}"

    @property
    def galleries(self) -> Path:
        """What the users of a service keep, where it was given no other place."""
        return self.state / "galleries"

    @property
    def answers(self) -> Path:
        """What a service was asked and answered."""
        return self.state / "answers"

    def monitored(self, gallery: str) -> Path:
        """What `kshot monitor` found out about a gallery."""
        return self.state / "monitor" / gallery

    @property
    def prefect_home(self) -> Path:
        return self.state / "prefect"

    @property
    def prefect_address(self) -> Path:
        """The URL of the Prefect API that `make ui` serves, while it does."""
        return self.state / "prefect-ui.url"

    @property
    def flow_lock(self) -> Path:
        return self.state / "flow.lock"

    @property
    def flow_run_id(self) -> Path:
        return self.state / "flow-run.id"

    @property
    def s3_demo(self) -> Path:
        return self.state / "s3-demo"
