"""`kshot difficulty`: the errors of the last model, which the sampler of hard classes draws by."""

from typing import TYPE_CHECKING, Annotated

import typer

from kshot.cli.output import say, warn
from kshot.errors import ConfigError
from kshot.project.data_pointer import track_data
from kshot.workspace import Workspace
from kshot.yaml_file import typed

if TYPE_CHECKING:
    from kshot.config import Params
    from kshot.data.difficulty import Difficulty


def difficulty(
    name: Annotated[str, typer.Argument(help="How params.yaml names it: sampler.difficulty.")],
) -> None:
    """Keep how often the model of the last run confuses each class of its training, under data/difficulty/."""
    from kshot.config import load_params
    from kshot.data.difficulty import difficulty_json, difficulty_path
    from kshot.ingest.pack import check_name
    from kshot.ingest.writer import write_atomically

    workspace = Workspace.find()
    check_name(name, "name of a difficulty")
    found = _measured(workspace, load_params(workspace.params))
    path, content = difficulty_path(workspace.data, name), difficulty_json(found)
    if path.exists() and path.read_bytes() != content:
        raise ConfigError(
            f"{path} holds other errors already, which models may have been trained by; needed another name; "
            f"next: kshot difficulty {name}-2"
        )
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)
    track_data(workspace, warn)
    hardest = sorted(found.queries, key=lambda one: found.errors[one] / found.queries[one], reverse=True)[:3]
    said = ", ".join(f"{one} {found.errors[one] / found.queries[one]:.0%}" for one in hardest)
    say(f"{path}: {found.episodes} of {len(found.queries):,} classes; most often wrong: {said}")
    say(f"next: in params.yaml, task_pool.meta_train.sampler: {{name: hard_classes, difficulty: {typed(name)}}}")


def _measured(workspace: Workspace, params: "Params") -> "Difficulty":
    """Raise DataError where the model was trained on another dataset than params.yaml names, or on another state."""
    from hashlib import sha256

    from kshot.data.gather import item_gather
    from kshot.data.packed import PackedDataset
    from kshot.episodes.frozen import check_drawn_from
    from kshot.evaluation.difficulty import measured_difficulty
    from kshot.evaluation.features import KeptItems
    from kshot.model import load_model
    from kshot.runtime.process import set_up_process
    from kshot.runtime.workers import choose_device

    set_up_process(params.process)
    saved, device = load_model(workspace.model), choose_device(params.process.device)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    check_drawn_from(workspace.output("task_pool"), dataset, following="make train")
    return measured_difficulty(
        saved.on(device).learner,
        dataset,
        next(iter(params.task_pool.meta_test.kinds().values())).shape,
        KeptItems(item_gather(dataset, device), dataset, workspace.features),
        seed=params.task_pool.seed,
        weights=sha256(workspace.weights.read_bytes()).hexdigest(),
    )
