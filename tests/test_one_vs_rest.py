"""Notebooks 07 and 07b and their scores, against independent oracles."""

import csv
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_ood.detector import EnergyBased, MaxLogit, MaxSoftmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

import osr_utils
import run_notebooks

nb = run_notebooks.definitions(run_notebooks.ROOT / "notebooks/07_one_vs_rest.ipynb")
board = run_notebooks.definitions(run_notebooks.ROOT / "notebooks/07b_leaderboard.ipynb")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- scores ---------------------------------------------------------------------------------------


def test_the_baselines_are_those_of_pytorch_ood():
    logits = 5 * torch.randn(40, 11, generator=seeded())
    scores, known = osr_utils.output_scores(logits), logits[:, :10].double()
    for name, detector in (("msp", MaxSoftmax), ("max_logit", MaxLogit), ("energy", EnergyBased)):
        assert torch.allclose(scores[name], detector.score(known).double(), atol=1e-6), name


def test_scores_of_a_garbage_class_need_one():
    ten = osr_utils.output_scores(torch.randn(3, 10))
    eleven = osr_utils.output_scores(torch.randn(3, 11))
    assert set(eleven) - set(ten) == {"ue_k1", "garbage_probability", "garbage_margin"}


def test_a_confident_garbage_class_is_certain_over_all_outputs_and_not_over_the_known_ones():
    """The trap: UE over K + 1 outputs is low on what falls into the garbage."""
    logits = torch.zeros(1, 11)
    logits[0, 10] = 30
    scores = osr_utils.output_scores(logits)
    assert scores["ue_k1"] < 1e-6 and scores["ue_k"] > 1 - 1e-6
    assert scores["garbage_probability"] > 1 - 1e-6 and scores["garbage_margin"] == 30


@pytest.fixture(scope="module")
def features():
    """Three classes in six dimensions, and a last layer that reads the last four of them."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    found = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 4 * np.eye(3, 6)[labels]
    found, new = found.astype(np.float32), 3 * rng.normal(size=(50, 6)).astype(np.float32)
    head = torch.nn.Linear(4, 11)
    fitted = osr_utils.fit_detectors(torch.tensor(found), torch.tensor(labels), head)
    return found, labels, fitted, new


def test_mahalanobis_ranks_as_the_distance_written_out(features):
    found, labels, fitted, new = features
    means = np.stack([found[labels == k].mean(0) for k in range(3)]).astype(float)
    precision = EmpiricalCovariance(assume_centered=True).fit(found - means[labels]).precision_
    gaps = new[:, None] - means
    expected = np.einsum("nki,ij,nkj->nk", gaps, precision, gaps).min(1)
    scores = fitted["mahalanobis"].predict_features(torch.tensor(new)).numpy()
    assert np.corrcoef(scores, expected)[0, 1] > 1 - 1e-6


def test_knn_is_the_distance_to_the_fiftieth_neighbour_on_the_sphere(features):
    found, _, fitted, new = features
    unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, new))
    expected = np.sort(np.linalg.norm(other[:, None] - unit, axis=2), 1)[:, 49]
    assert np.allclose(fitted["knn"].predict_features(torch.tensor(new)), expected, atol=1e-6)


def test_every_score_of_every_set_comes_back(features):
    found, labels, *_ = features
    head = torch.nn.Linear(4, 11)
    model = SimpleNamespace(features=lambda part: part, last_layer=head)
    x = torch.tensor(found)
    inputs = {"a": x[:7], "b": x[7:20]}
    outputs = {name: head(part[:, 2:]).detach() for name, part in inputs.items()}
    scores = osr_utils.all_scores(model, outputs, (x, torch.tensor(labels)), inputs)
    assert {name: {len(v) for v in found.values()} for name, found in scores.items()} == {
        "a": {7}, "b": {13},
    }  # fmt: skip
    assert len(scores["a"]) == 11 and scores["a"].keys() == scores["b"].keys()


def test_a_model_with_a_log_goes_to_another_process_and_back():
    """The leaderboard's models are judged one a process."""
    model = osr_utils.GarbageClassifier().eval()
    model.log = {"history": torch.ones(2, 3)}
    x = torch.rand(3, 1, 28, 28, generator=seeded())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.log["history"], model.log["history"])
    assert torch.equal(again.features(x), model.features(x)) and torch.equal(again(x), model(x))


# --- OSCR -----------------------------------------------------------------------------------------


def test_oscr_against_a_double_loop():
    rng = np.random.default_rng(1)
    right, known, unknown = rng.random(40) < 0.8, rng.integers(0, 9, 40), rng.integers(3, 12, 30)
    pairs = [right[i] * ((known[i] < u) + (known[i] == u) / 2) for i in range(40) for u in unknown]
    assert board["oscr"](right, known, unknown) == pytest.approx(np.mean(pairs))


def test_oscr_of_a_faultless_classifier_is_the_auroc():
    rng = np.random.default_rng(2)
    known, unknown = rng.normal(size=60), rng.normal(1, size=50)
    expected = roc_auc_score(np.repeat([0, 1], [60, 50]), np.concatenate([known, unknown]))
    assert board["oscr"](np.ones(60, bool), known, unknown) == pytest.approx(expected)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 32, 32, 3), (4, 20, 30)])
@pytest.mark.parametrize("known", ["mnist", "cifar10"])
def test_every_picture_gets_the_known_sets_shape(monkeypatch, shape, known):
    monkeypatch.setitem(nb, "device", torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    channels, side = nb["SHAPES"][known]
    x = nb["shaped"](images, channels, side)
    assert x.shape == (4, channels, side, side) and 0 <= x.min() <= x.max() <= 1
    if shape == (4, 32, 32, 3) and known == "cifar10":
        assert torch.equal((x * 255).round().byte(), torch.tensor(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_recombined_pictures_are_shuffled_or_joined(channels, side):
    images = torch.rand(60, channels, side, side, generator=seeded())
    found = nb["recombined"](images, torch.arange(60) % 2, seeded())
    half, shuffled = side // 2, 0
    for image, old in zip(found, images, strict=True):
        assert not torch.equal(image, old)
        if torch.equal(image[:, :half], old[:, :half]) or torch.equal(
            image[..., :half], old[..., :half]
        ):
            continue
        shuffled += 1
        assert torch.equal(image.flatten().sort().values, old.flatten().sort().values)
        corner = image[:, : side // 4, : side // 4]
        tiles = old.unfold(1, side // 4, side // 4).unfold(2, side // 4, side // 4)
        assert (tiles == corner[:, None, None]).all((0, 3, 4)).any(), "whole tiles move"
    assert 10 < shuffled < 32, "about a third"


def test_a_set_of_one_class_cannot_be_the_known_one(monkeypatch):
    one = osr_utils.ImageSet(np.zeros((5, 28, 28), np.uint8), np.zeros(5, np.int64), "ones", "")
    monkeypatch.setattr(osr_utils, "load_images", lambda *_: one)
    with pytest.raises(ValueError, match="ones has fewer than two classes"):
        nb["halves"]("mnist")


def answer(x):
    """Return logits that call dark pictures a 3 and bright ones unknown."""
    logits = torch.zeros(len(x), 11)
    logits[:, 3], logits[:, 10] = 1, 4 * x.mean((1, 2, 3))
    return logits


def test_the_results_do_not_lie_among_the_pictures(tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match="folder of their own"):
        osr_utils.judge_pictures(answer, tmp_path, tmp_path / "below" / "..")


def test_own_pictures_become_a_table_and_a_sheet(tmp_path):
    for name, grey in (("dark", 10), ("bright", 250), ("middle", 60)):
        Image.new("L", (40, 30), grey).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = osr_utils.judge_pictures(answer, tmp_path, tmp_path / "out", prepare=False)
    assert [(row["picture"], row["verdict"]) for row in rows] == [
        ("dark.png", "3"), ("middle.png", "3"), ("bright.png", "unknown"),
    ]  # fmt: skip
    with open(tmp_path / "out/scores.csv", encoding="utf-8") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == [row["picture"] for row in rows]
    sheet = np.asarray(Image.open(tmp_path / "out/contact_sheet.png").convert("L"), dtype=float)
    middles = np.arange(1, 6, 2) * sheet.shape[1] // 6  # of three pictures in a line
    assert np.allclose(sheet[sheet.shape[0] * 2 // 3, middles], [10, 60, 250], atol=5)


def test_an_array_of_pictures_works_too(tmp_path):
    images = np.stack([np.full((28, 28), grey, np.uint8) for grey in (250, 10)])
    rows = osr_utils.judge_pictures(answer, images, tmp_path)
    assert [row["picture"] for row in rows] == ["1", "0"]
    assert rows[0]["ood_score"] == pytest.approx(4 * 10 / 255 - 1, abs=1e-4)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((0, 28, 28), np.uint8), "no pictures"),
        (np.zeros((2, 28, 28), np.float32), "expected uint8"),
        (np.zeros((28, 28, 3), np.uint8), "picture.None."),
    ],
)
def test_what_are_no_pictures_is_said(tmp_path, pictures, message):
    with pytest.raises(ValueError, match=message):
        osr_utils.judge_pictures(answer, pictures, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_of_ten_outputs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="11"):
        osr_utils.judge_pictures(
            lambda x: torch.zeros(len(x), 10), np.zeros((2, 28, 28), np.uint8), tmp_path
        )


def test_halves_of_one_class_are_not_joined():
    images = torch.rand(30, 1, 28, 28, generator=seeded())
    found = nb["recombined"](images, torch.zeros(30, dtype=torch.long), seeded())
    pixels = [x.flatten(1).sort(1).values for x in (images, found)]
    assert torch.equal(*pixels), "tiles were shuffled, nothing else"
