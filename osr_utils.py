"""The small shared helper module: what the notebooks, and you, import from the package `osr`.

    import osr_utils as osr

| I want to ...                              | call                                              |
|--------------------------------------------|---------------------------------------------------|
| judge a model with eleven outputs          | `eval_model(model, loader, device)`               |
| mix known images with unknown ones         | `CombinedDataset(mnist, ood)`                     |
| use a trained detector                     | `load_model(name)`, `list_models()`, `ood_score`  |
| load a data set, or a part of it           | `load_images(name, split)`, `sample_images`       |
| know which data sets are here              | `available_sets(names, split)`, `is_available`    |
| give a set of my own a name                | `register(name, train=..., test=...)`             |
| turn images into model input               | `to_model_input(images)`                          |
| split reproducibly                         | `sample_split`, `digit_split`                     |
| judge a folder of hand-ins                 | `judge_submissions(folder, loader, device)`       |
| judge a folder of pictures                 | `judge_pictures(model, pictures, output)`         |
| compare the scores of known and unknown    | `ood_metrics(id_scores, ood_scores)`              |
| have every score of a network              | `all_scores(model, outputs, known, inputs)`       |
| say what a reconstruction costs            | `reconstruction_costs(model, images, costs)`      |
| weigh an error against the logits          | `calibrate_alpha_percentile(model, loader, ...)`  |
| train, or find the stored weights          | `fit_or_load(name, config, train, ...)`           |
| try many configurations                    | `run_sweep(function, configs, arrays)`            |
| collect, average and save results          | `add_rows`, `mean_and_deviation`, `save_results`  |
| draw figures in the report's style         | `show_strips(rows)`, `save_figure(fig, name)`     |

An *OOD score* is higher for inputs that look more out-of-distribution (OOD); OOD is the positive
class of every metric. Images are float32 (N, 1, 28, 28) in [0, 1] wherever a shipped model sees
them. The functions live in the rooms of the package `osr`, one concern each; CONTRIBUTING.md says
how to add a data set, a score, a model or a notebook.
"""

from osr import inversion, synthetic
from osr.autoencoders import Autoencoder, fit_autoencoder, fit_classifier
from osr.caches import DatasetNotFoundError, ImageSet
from osr.checkpoints import load_weights
from osr.comparisons import add_stored, all_seeds, bootstrap_aurocs, difference_of_designs
from osr.contract import (
    OOD_LABEL,
    CombinedDataset,
    eval_model,
    ood_score,
    predict,
)
from osr.costs import PIXEL_COSTS, combine, max_logits, outline, reconstruction_costs
from osr.datasets import (
    available_sets,
    data_notes,
    digit_split,
    is_available,
    load_images,
    sample_images,
    sample_split,
)
from osr.figures import (
    COLORS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    save_figure,
    show_strips,
    start_notebook,
    use_report_style,
)
from osr.hand_in_files import load_submission
from osr.images import augment, ground_matched, on_ground, to_model_input, warp
from osr.metrics import ood_metrics
from osr.models import (
    SHIPPED,
    DigitClassifier,
    GarbageClassifier,
    MultitaskAutoencoder,
    OpenSetDetector,
)
from osr.modes import evaluation_mode
from osr.own_sets import register
from osr.paths import (
    ROOT,
    atomic_path,
    checkpoint_dir,
    checksum,
    output_dir,
    profile,
    progress,
    results_dir,
    retraining,
    seeds,
)
from osr.pictures import judge_pictures, load_pictures
from osr.records import CORRUPTIONS, SETS
from osr.results import (
    add_rows,
    as_stored,
    read_results,
    row_values,
    save_results,
    select_rows,
    stored_rows,
)
from osr.scores import (
    FEATURE_DETECTORS,
    OUTPUT_SCORES,
    add_sums,
    all_scores,
    calibrate_alpha_percentile,
    energy,
    fit_detectors,
    max_logit,
    msp,
    output_scores,
    uncertainty_estimate,
)
from osr.shipped import find_weights, list_models, load_model
from osr.submissions import judge_submissions
from osr.sweep import run_sweep
from osr.tables import format_rows, format_seeds, mean_and_deviation
from osr.training import pick_device, seed_everything, train
from osr.weights import fit_or_load

# What `from osr_utils import *` brings: the contract, and nothing that hides another name.
__all__ = [
    "OOD_LABEL", "CombinedDataset", "DatasetNotFoundError", "ImageSet",
    "calibrate_alpha_percentile", "digit_split", "eval_model", "is_available", "judge_pictures",
    "judge_submissions", "list_models", "load_images", "load_model", "load_pictures",
    "load_submission", "ood_metrics", "ood_score", "sample_images", "sample_split",
    "to_model_input",
]  # fmt: skip
