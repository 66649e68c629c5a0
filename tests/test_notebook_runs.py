"""The notebooks executed: small in the demo, and on real images against what is stored."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from nbclient.exceptions import CellExecutionError
from safetensors.torch import load_file

import run_notebooks
from osr.datasets import load_images
from osr.results import select_rows
from osr.weights import checkpoint_metadata
from run_notebooks import ROOT

pytestmark = pytest.mark.runs
NOTEBOOKS = run_notebooks.notebooks()
NAMES = [path.stem for path in NOTEBOOKS]


@pytest.fixture(scope="module")
def demo_runs(tmp_path_factory):
    """Every notebook, small, as `make demo` runs it; two at a time, on one core each."""
    output = tmp_path_factory.mktemp("demo")
    environment = {"OSR_PROFILE": "demo", "OSR_RETRAIN": None, "OSR_OUTPUT": str(output)}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(path):
        try:
            run_notebooks.execute(path, environment, output / path.name, timeout=300)
        except CellExecutionError as error:
            return str(error)

    return output, run_notebooks.side_by_side(run)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_demo_runs(path, demo_runs):
    output, problems = demo_runs
    assert problems[path.stem] is None, problems[path.stem]
    results = json.loads((output / f"report/results/{path.stem}.json").read_text("utf-8"))
    assert results["profile"] == "demo"
    assert list((output / "figures").glob(f"{path.stem.split('_')[0]}_*.png"))


MAIN, KINDS, SEEN = "multitask_autoencoder", ("base", "sp", "pixmix"), ("mnist", "fashionmnist")
DETECTORS = ("osr_detector", "osr_detector_9k", "plain_cnn", "autoencoder_10")
EXPOSED, CLOTHES = tuple(f"{kind}+oe" for kind in KINDS), ("fashionmnist", "kmnist")
# What the models of the demo must reach, well above guessing: (notebook, rows, floor).
FLOORS = [
    ("02", {"method": "latent=8", "ood": "mnist-8", "metric": "auroc"}, 0.70),
    ("02", {"method": "unlabelled", "ood": ("mnist-8", "mnist-4"), "metric": "auroc"}, 0.75),
    ("02", {"method": "reconstruction", "ood": "mnist-8", "metric": "auroc"}, 0.85),
    ("02", {"method": "reconstruction", "ood": "mnist-4", "metric": "auroc"}, 0.72),
    ("02", {"method": "best", "ood": "mnist-8", "metric": "auroc"}, 0.90),
    ("02b", {"method": "nine:logit+conditional", "metric": "auroc_mean"}, 0.75),
    ("03", {"method": (MAIN, "multitask_lambda=2"), "metric": "accuracy"}, 0.80),
    ("03", {"method": MAIN, "metric": "osr_mnist"}, 0.80),
    ("03", {"method": MAIN, "ood": CLOTHES, "metric": "osr_ood"}, 0.80),
    ("03", {"method": MAIN, "metric": "auroc"}, 0.80),
    ("03b", {"method": DETECTORS, "id": "mnist", "metric": "accuracy"}, 0.75),
    ("03b", {"method": "osr_detector", "ood": CLOTHES, "metric": "auroc"}, 0.85),
    ("04", {"method": f"{MAIN}/latent", "ood": "", "metric": "knn_agreement"}, 0.75),
    ("04", {"method": f"{MAIN}/margin", "ood": "kmnist", "metric": "auroc"}, 0.90),
    ("05", {"method": KINDS + EXPOSED, "id": "mnist", "metric": "accuracy"}, 0.80),
    ("05", {"method": "*/cross_entropy", "ood": CLOTHES, "metric": "auroc"}, 0.70),
    ("05", {"method": "*+oe/msp", "ood": "fashionmnist", "metric": "auroc"}, 0.95),
    ("05", {"method": ("pixmix", "pixmix+oe"), "metric": "mnist_c_accuracy"}, 0.60),
    ("06", {"method": ("experiment_3", "improved"), "metric": "accuracy_after"}, 0.65),
    ("06", {"method": "experiment_*", "metric": "accuracy_after"}, 0.45),
    ("06", {"method": "improved", "ood": "fashionmnist-train", "metric": "auroc"}, 0.80),
    ("06", {"method": "short/*", "ood": "fashionmnist-train", "metric": "auroc"}, 0.70),
    ("06", {"method": "ablation/*", "ood": "fashionmnist-train", "metric": "auroc"}, 0.60),
    ("07", {"system": "E", "method": "best", "id": SEEN, "metric": "auroc"}, 0.90),
    ("07", {"system": "E", "method": "best", "ood": "mnist", "metric": "auroc"}, 0.70),
    ("07b", {"method": "*/energy+mahalanobis", "metric": "oscr"}, 0.80),
]  # fmt: skip


def demo_values(demo_runs, number, **wanted):
    """Return the values of some rows that the demo of a notebook has saved."""
    (file,) = (demo_runs[0] / "report/results").glob(f"{number}_*.json")
    rows = select_rows(json.loads(file.read_text("utf-8"))["rows"], **wanted)
    assert rows, f"{number} has no {wanted}"
    return [row["value"] for row in rows]


@pytest.mark.parametrize("number, wanted, floor", FLOORS, ids=str)
def test_a_model_of_the_demo_is_better_than_guessing(number, wanted, floor, demo_runs):
    assert min(demo_values(demo_runs, number, **wanted)) >= floor


def test_the_demo_redraws_digits(demo_runs):
    """A mean image, or a black one, is what a network that has learnt nothing redraws."""
    images = load_images("mnist", "test").images / 255
    wanted = {"metric": "mse", "ood": ""}
    (small,) = demo_values(demo_runs, "02", method="latent=8", **wanted)
    (final,) = demo_values(demo_runs, "02", method="long/slight/wide", **wanted)
    assert final < 0.6 * images.var(0).mean() and small < 0.75 * images.var(0).mean()
    wanted["ood"] = "mnist-8"
    assert demo_values(demo_runs, "02", method="long/slight/wide", **wanted)[0] > 1.3 * final
    (error,) = demo_values(demo_runs, "03", method="extremes/all_digits", metric="median_error")
    assert error < 0.2  # of a black picture 0.4, in [-1, 1]


def test_the_demo_inverts_to_pictures_that_are_not_grey(demo_runs):
    """The log of a training holds its last inverted pictures, and what became of them."""
    hits = []
    for path in (demo_runs[0] / "checkpoints").glob("garbage_classifier-*.safetensors"):
        config, log = checkpoint_metadata(path)["config"], load_file(path)
        assert log["log.history"][-1, 4] >= 0.4, "accuracy on validation digits"
        if config["steps"]:
            pictures = log["log.gallery"][-1].float() / 255
            assert pictures.flatten(1).std(1).min() >= 0.05  # of a grey one 0.001
            hits.append(float(log["log.history"][-1, 1]))
    assert max(hits) >= 0.25  # chance is a tenth


@pytest.fixture(scope="module")
def checked_runs(tmp_path_factory):
    """Every notebook on real images, compared by nbval with what is stored; two at a time."""
    output = tmp_path_factory.mktemp("full")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-x", "-q"]
    command += ["--nbval-sanitize-with", "tests/nbval.cfg", "--nbval-cell-timeout", "600"]
    environment = os.environ | {"OSR_PROFILE": "full", "OSR_OUTPUT": str(output)}
    environment |= {"OSR_RETRAIN": "0", "OSR_PROGRESS": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    environment.setdefault("OMP_NUM_THREADS", "1")

    def run(path):
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", str(path)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    return output, run_notebooks.side_by_side(run)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_prints_and_saves_what_is_stored(name, checked_runs):
    """nbval compares the checked cells as text; the rows are then compared as numbers.

    What rests on a data set that is not here is left out, and counted.
    """
    output, runs = checked_runs
    assert runs[name].returncode == 0, runs[name].stdout[-5000:] + runs[name].stderr[-2000:]
    files = (folder / f"report/results/{name}.json" for folder in (ROOT, output))
    stored, new = (json.loads(file.read_text("utf-8")) for file in files)
    equal, differences, wanting = run_notebooks.compare_rows(stored, new)
    print(f"{equal} values equal; not computed: {dict(wanting)}")
    assert differences == [] and (equal or not stored["rows"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal for another process")
def test_a_run_that_is_stopped_ends_at_once(tmp_path):
    environment = os.environ | {"OSR_OUTPUT": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tests/run_notebooks.py"), "run", "01"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        while not (tmp_path / ".lock").exists():
            time.sleep(0.2)
        time.sleep(3)  # a kernel is on its way
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130 and "stopped" in run.stdout.read()
