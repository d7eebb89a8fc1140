"""The stages of the pipeline: read, call the library, write under artifacts/NAME.

A stage has one name: its key here and in dvc.yaml, its module, its section in params.yaml, its folder under
artifacts/ and its task in the flow. Its module has `run(params, workspace)`, or `run(params, workspace, item)`
where dvc.yaml has the stage once for each item of a list.
"""

STAGES = {  # imported by name when one is run, because most of them bring torch
    "validate": "kshot.stages.validate",
    "task_pool": "kshot.stages.task_pool",
    "pretrain": "kshot.stages.pretrain",
    "pseudo_labels": "kshot.stages.pseudo_labels",
    "meta_train": "kshot.stages.meta_train",
    "evaluate": "kshot.stages.evaluate",
    "seeds": "kshot.stages.seeds",
    "cross_domain": "kshot.stages.cross_domain",
}
