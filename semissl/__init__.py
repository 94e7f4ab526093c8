"""Few labels, many images: self-supervision, same-class correlation and a linear head in one run.

What stands in PUBLIC can be relied on; everything else may change."""
from importlib import import_module

__version__ = "0.1.0"

PUBLIC = {  # room -> names; a room is loaded when one of its names is asked for, so `import semissl` does no work
    "data.images": "ImageSet from_arrays",
    "data.labels": "label_rows",
    "data.loader": "FewLabelLoader",
    "data.sources": "clear_cache load_images",
    "data.split": "LabelSplit duplicate_report hide_labels label_split",
    "data.table": "apply_labels read_labels",
    "method.adapter": "Adapter",
    "method.augment": "augment cutmix normalise two_views",
    "method.correlation": "correlation two_sided",
    "method.encoder": "encoder",
    "method.heads": "LinearHead Projector",
    "method.load": "ready",
    "method.losses": "barlow_twins class_correlation cross_entropy nt_xent sample_correlation vicreg",
    "method.module": "SemiSSL",
    "method.policy": "Policy policy",
    "method.propagate": "frequencies propagate",
    "method.pseudo": "PseudoLabels",
    "method.recipe": "recipe",
    "method.schedule": "EMA Stages",
    "run.config": "TrainConfig",
    "run.evaluate": "class_means encode evaluate fit_head knn label_propagation linear_probe",
    "run.features": "look",
    "run.fit": "fit",
    "run.folder": "Result",
    "run.metrics": "accuracy accuracy_at_coverage accuracy_interval calibration_error class_correlation_matrix "
    "effective_rank fit_temperature",
    "use.classifier": "FewLabelClassifier",
    "use.export": "export",
    "use.labeller": "Labeller",
    "use.learner": "Learner",
    "use.loop": "active_loop",
    "use.predict": "predict_table",
    "use.predictor": "Predictor load_predictor",
    "use.suggest": "suggest",
    "many.arms": "run_arms",
    "many.command": "sweep",
    "many.figures": "run_figures save_figures",
    "many.files": "read_run",
    "many.paired": "paired_gain t_interval",
    "many.report": "html_report read_batch wandb_report",
    "many.rows": "merge_rows read_rows result_row results_table rows_to_json",
    "many.tables": "accuracy_against_labels summary_table",
    "many.work": "run_batch",
}
HOME = {name: room for room, names in PUBLIC.items() for name in names.split()}
__all__ = sorted(HOME)


def __getattr__(name: str):
    "A public name, from its room."
    if name not in HOME:
        raise AttributeError(f"module 'semissl' has no attribute {name!r}")
    return getattr(import_module(f"semissl.{HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *HOME])
