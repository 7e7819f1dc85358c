"""Names of the tags that Kinoflow writes in MLflow; one home, because runs and model versions are found by them."""

RUN, TASK = "kinoflow.run", "kinoflow.task"
DATASET, SOURCE = "kinoflow.dataset_digest", "kinoflow.source_version"
CHECKPOINT, CHECKPOINT_DIGEST = "kinoflow.checkpoint", "kinoflow.checkpoint_digest"
STAGE, PARENT, DATA = "kinoflow.stage", "kinoflow.parent", "kinoflow.data"
SCORES = "kinoflow.scores"
"""Of a model version: its numbers as JSON, `{metric: value}`; a run evaluated again has newer ones."""
PIPELINE_TASK = "pipeline"
