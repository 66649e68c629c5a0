"""Notebook 06: conditioning, the four losses and the loop, against independent oracles."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

import osr_utils
import run_notebooks

nb = run_notebooks.definitions(run_notebooks.ROOT / "notebooks/06_network_inversion.ipynb")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uncertainty_estimate_against_its_definition():
    logits = np.random.default_rng(0).normal(size=(50, 11)) * 4
    p, u = softmax(logits, 1), np.full(11, 1 / 11)
    y = np.eye(11)[p.argmax(1)]
    expected = 1 - ((p - u) ** 2).sum(1) / ((y - u) ** 2).sum(1)
    found = osr_utils.uncertainty_estimate(torch.from_numpy(logits)).numpy()
    assert np.allclose(found, expected) and 0 <= found.min() and found.max() <= 1


def test_soft_vectors_are_distributions_that_never_ask_for_garbage():
    soft = nb["soft_vectors"](5_000, seeded())
    assert soft.shape == (5_000, 11) and torch.allclose(soft.sum(1), torch.ones(5_000))
    assert soft.argmax(1).max() == 9 and soft.max() < 0.999, "soft, not one-hot"
    counts = soft.argmax(1).bincount(minlength=10)
    assert counts.min() > 400, "every digit is asked for about equally often"
    assert torch.equal(soft, nb["soft_vectors"](5_000, seeded()))


def test_matrices_mark_one_row_and_one_column():
    found = nb["matrices"](torch.arange(10))
    assert found.shape == (10, 1, 10, 10)
    for k in range(10):
        expected = torch.zeros(10, 10)
        expected[k], expected[:, k] = 1, 1
        assert torch.equal(found[k, 0], expected)


def test_cos_and_ortho_against_a_double_loop():
    features = torch.randn(9, 5, generator=seeded())
    unit = [row / row.norm() for row in features]
    gram = [[float(a @ b) for b in unit] for a in unit]
    off = [gram[i][j] for i in range(9) for j in range(9) if i != j]
    assert math.isclose(nb["cos"](features), sum(off) / 72, abs_tol=1e-6)
    gaps = [(gram[i][j] - (i == j)) ** 2 for i in range(9) for j in range(9)]
    assert math.isclose(nb["ortho"](features), sum(gaps) / 81, abs_tol=1e-6)
    assert math.isclose(nb["cos"](features[:1].repeat(4, 1)), 1, abs_tol=1e-6)
    assert math.isclose(nb["ortho"](torch.eye(5)), 0, abs_tol=1e-6)


def test_the_inversion_loss_weighs_its_four_parts():
    model, pictures = osr_utils.GarbageClassifier().eval(), torch.rand(6, 1, 28, 28)
    soft = nb["soft_vectors"](6, seeded())
    features = model.penultimate(pictures)
    logits = model.head(features).detach()
    divergence = rel_entr(soft.numpy(), softmax(logits.numpy(), 1)).sum(1).mean()
    entropy = -logits.log_softmax(1)[range(6), soft.argmax(1)].mean()
    parts = [torch.tensor(divergence), entropy, nb["cos"](features), nb["ortho"](features)]
    for k in range(4):
        weights = [0.0] * 4
        weights[k] = 2.0
        found = nb["inversion_loss"](model, pictures, soft, weights)
        assert torch.allclose(found, 2 * parts[k], atol=1e-5)


@pytest.fixture
def small(monkeypatch):
    """The loop at a size that takes seconds."""
    for name, value in {"STEPS": 2, "GENERATOR_BATCH": 8, "device": torch.device("cpu")}.items():
        monkeypatch.setitem(nb, name, value)
    x, y = torch.rand(60, 1, 28, 28, generator=seeded()), torch.arange(60) % 10
    names = {
        "validation_x": x,
        "validation_y": y,
        "development": {"a": x[:9], "b": x[9:20]},
    }
    for name, value in names.items():
        monkeypatch.setitem(nb, name, value)
    config = {"noise": 20, "steps": 2, "added": 100, "weights": (1, 1, 1, 1), "batch_size": 30,
              "lr": 1e-3, "decay": 0, "augmentation": False, "garbage_weight": 1.0, "outliers": 0,
              "gate": 0.0, "restart": False, "epochs": 3, "seed": 0}  # fmt: skip
    return x, y, config


def run(x, y, config):
    osr_utils.seed_everything(config["seed"])
    model = osr_utils.GarbageClassifier()
    nb["inversion_loop"](model, x, y, config, lambda epoch: None)
    return model


def test_the_loop_grows_its_garbage_and_repeats_itself(small):
    x, y, config = small
    model, again = run(x, y, config), run(x, y, config)
    history = model.log["history"]
    assert history.shape == (3, len(nb["EPOCH_COLUMNS"]))
    assert history[:, 0].tolist() == [20, 120, 220] and history[:, 1:7].isfinite().all()
    assert torch.equal(history[:, :7], again.log["history"][:, :7])
    assert model.log["gallery"].shape == (3, 10, 28, 28) and model.log["gallery"].any()
    for key in ("gallery", "gallery_uncertainty"):
        assert torch.equal(model.log[key], again.log[key])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_garbage_is_bounded_and_the_oldest_go(small, monkeypatch, capsys):
    monkeypatch.setitem(nb, "LIMIT", 150)
    model = run(*small)
    assert model.log["history"][:, 0].tolist() == [20, 120, 150]
    assert "oldest pictures of garbage dropped" in capsys.readouterr().out


def test_the_gate_lets_nothing_through_that_is_too_sure(small):
    x, y, config = small
    model = run(x, y, config | {"gate": 1.1})
    assert model.log["history"][:, 0].tolist() == [20, 20, 20]


def test_the_generator_leaves_the_classifier_alone(small):
    *_, config = small
    model, draws = osr_utils.GarbageClassifier(), seeded()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = nb["Generator"]()
    optimizer = torch.optim.Adam(generator.parameters())
    nb["train_generator"](generator, optimizer, model, config, draws)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_longer_training_passes_through_the_shorter_ones(small, sandbox, monkeypatch, capsys):
    """So the experiments that differ in their epochs alone are trained once."""
    monkeypatch.setenv("OSR_RETRAIN", "1")
    *_, config = small
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % 10
    monkeypatch.setitem(nb, "mnist", osr_utils.ImageSet(images, labels, "mnist", ""))
    (job,) = nb["trainings"]([config | {"epochs": n} for n in (1, 3, 2)])
    assert job == config | {"cuts": [1, 2]}
    fit = nb["fit_garbage_classifier"]
    fit("tiny", config, images, labels, cuts=[2])
    capsys.readouterr()
    cut = fit("tiny", config | {"epochs": 2}, images, labels)
    said = capsys.readouterr().out
    assert said.startswith("loaded tiny-") and "changed" not in said, said
    for path in osr_utils.checkpoint_dir().iterdir():
        path.unlink()
    alone = fit("tiny", config | {"epochs": 2}, images, labels)
    for key, value in alone.state_dict().items():
        assert torch.equal(value, cut.state_dict()[key]), key
    assert alone.log.keys() == cut.log.keys() == {"history", "gallery", "gallery_uncertainty"}
    for key, value in alone.log.items():
        columns = slice(7) if key == "history" else slice(None)  # all but the seconds
        assert len(value) == 2 and torch.equal(value[:, columns], cut.log[key][:, columns]), key


def test_trainings_with_a_falling_rate_are_not_merged():
    config = {"decay": 1, "seed": 0}
    jobs = nb["trainings"]([config | {"epochs": n} for n in (1, 3)])
    assert [(job["epochs"], job["cuts"]) for job in jobs] == [(3, []), (1, [])]


@torch.no_grad()
def test_calibration_keeps_the_share_of_validation_digits(small):
    x, *_ = small
    model = osr_utils.GarbageClassifier().eval()
    nb["calibrate_garbage"](model, 0.8)
    assert (osr_utils.ood_score(model(x)) > 0).sum() == 12, "a fifth of sixty"


def test_photographed_digits_stand_on_ground_that_is_never_black():
    synthetic = osr_utils.synthetic
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 6:22, 12:16] = 1  # a bar
    found = synthetic.photographed(x, seeded())
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert torch.equal(found, synthetic.photographed(x, seeded()))
    ground = found[..., :8].flatten(1)
    assert ground.mean(1).min() > 0.003 and (ground > 0).float().mean(1).min() > 0.5
    bar = found[:, 0, 8:20, 13:15].flatten(1).mean(1)
    assert (bar - ground.mean(1)).abs().gt(0.05).float().mean() > 0.8, "most can still be read"


def test_changed_digits_join_the_pool(small):
    x, y, _ = small
    pool = torch.zeros(30, 1, 28, 28)
    assert len(nb["add_changed_digits"](pool, x, y, 0, seeded())) == 30 + 20
    assert len(nb["add_changed_digits"](pool, x, y, 7, seeded())) == 30 + 20 + 7
    assert not len(nb["add_changed_digits"](pool[:0], x, y, 0, seeded()))
