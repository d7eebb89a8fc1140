"""Score the trained learner on the frozen meta_test episodes, beside the baselines on the very same ones."""

from dataclasses import replace
from functools import partial

from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.episodes.labels import without_labels
from kshot.evaluation.baselines import pretrained_baselines, untrained_baselines
from kshot.evaluation.features import KeptItems
from kshot.evaluation.grid import Grid, score_extras, score_model, write_scores
from kshot.evaluation.reference import REFERENCE, write_reference
from kshot.evaluation.report import write_report
from kshot.model import load_model
from kshot.runtime.lines import LiveLines
from kshot.runtime.process import set_up_process
from kshot.runtime.workers import choose_device
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace) -> None:
    """Write metrics.json, four tables (episodes, classes, confusions, reference), plots/, and two pages."""
    set_up_process(params.process)
    lines = LiveLines(partial(print, flush=True))
    saved = load_model(workspace.model)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    device = choose_device(params.process.device)
    gather = KeptItems(item_gather(dataset, device), dataset, workspace.features)
    grid = Grid(
        dataset=dataset,
        frozen=read_frozen(workspace.output("task_pool"), dataset, params.task_pool),
        seed=params.seed,
    )
    found = score_model(
        grid,
        saved.on(device),
        gather,
        baselines=untrained_baselines(saved.config, dataset, gather, seed=params.seed),
        pretrained=pretrained_baselines(workspace.pretrained_model, saved.learner, dataset, gather, seed=params.seed),
        lines=lines,
    )
    trained_on = params.task_pool.meta_train
    extras = score_extras(
        grid,
        saved,
        found.settings[0],
        gather,
        seed=params.task_pool.seed,
        held_in=trained_on.has_given_labels,
    )
    labels = {} if trained_on.has_given_labels else {"labels": without_labels(trained_on.labels)}
    found = replace(found, metrics=found.metrics | extras | labels)
    folder = workspace.output("evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder, found, dataset)
    write_reference(folder / REFERENCE, saved, grid.frozen.val.indices, gather)
    write_report(folder, found, dataset, workspace.output("meta_train"), n_worst=params.evaluate.worst_classes)
