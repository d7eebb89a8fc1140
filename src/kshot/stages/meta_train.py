"""Train the configured learner, in one process or several, and keep the weights that are best on meta_val."""

from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.model import save_model
from kshot.stages.launch import forget_checkpoints, train, training_of, write_history, write_speed
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace) -> None:
    """Write model/, history.parquet and metrics.json. What cannot be trained as configured is refused first."""
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    training = training_of(params, dataset, workspace, seed=params.seed)
    trained = train("meta_train", training, params, workspace, dataset)
    if trained is None:
        return
    save_model(workspace.model, trained.model)
    write_speed(workspace, trained)  # first: writing tables takes memory of its own
    write_history(workspace.output("meta_train"), trained)
    forget_checkpoints(trained)
