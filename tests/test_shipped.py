"""The models that ship: loaded by name, listed; and what a demo or a retraining has instead."""

import os
import shutil

import pytest
import torch

from helpers import (
    POINTER,
    STRANGER,
    files,
    literal,
    other_defaults,
    row,
    ship,
    state_bytes,
    store_rows,
    train_autoencoder,
)
from osr import models, paths, results, shipped

pytestmark = pytest.mark.usefixtures("sandbox")


@torch.no_grad()
def test_a_shipped_model_is_ready_to_use(repository):
    ship(seed=1)
    name = ship(seed=0)
    assert files(repository / "data/checkpoints") == files(repository)
    assert len(files(repository)) == 3 and STRANGER in files(repository)
    model = shipped.load_model("multitask_autoencoder")
    logits = model(torch.rand(3, 1, 28, 28))
    assert model.checkpoint == name and not model.training and model.alpha == 5
    assert logits.shape == (3, 11) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet", "", "multitask", "../multitask_autoencoder"])
def test_an_unknown_model_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="no shipped model.*there are multitask_autoencoder"):
        shipped.load_model(name)


def test_missing_and_ambiguous_weights_name_the_folder(repository):
    with pytest.raises(FileNotFoundError, match=f"no files .*{literal(repository)}"):
        shipped.load_model("multitask_autoencoder")
    name = ship()
    folder = paths.shipped_dir()
    shutil.copy(folder / f"{name}.safetensors", folder / "multitask_autoencoder-copy.safetensors")
    with pytest.raises(FileNotFoundError, match="2 files .* keep one of .*-copy.safe") as caught:
        shipped.load_model("multitask_autoencoder")
    assert name in str(caught.value) and "git" not in str(caught.value)


def test_weights_of_ones_own_configuration_leave_the_shipped_ones_alone(repository):
    name = ship()
    own = train_autoencoder(lr=1)
    assert own != name and train_autoencoder(lr=1) == own
    assert files(paths.shipped_dir()) == sorted([STRANGER, f"{name}.safetensors"])
    assert shipped.load_model("multitask_autoencoder").checkpoint == name


@pytest.mark.parametrize("other", ["multitask_autoencoder-wide", "multitask_autoencoder2"])
def test_a_model_whose_name_goes_on_is_not_in_the_way(repository, other):
    ship(name=other, epochs=2)
    name = ship()
    assert shipped.load_model("multitask_autoencoder").checkpoint == name
    assert shipped.list_models()["multitask_autoencoder"]["file"] == f"{name}.safetensors"


@pytest.mark.parametrize("name", models.SHIPPED)
@torch.no_grad()
def test_every_shipped_model_is_ready_and_keeps_the_contract(name):
    model = shipped.load_model(name)
    output = model(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (4, 11) and output.dtype == torch.float32 and output.isfinite().all()
    assert not any(module.training for module in model.modules())
    assert getattr(model, "alpha", 0) != 1
    assert shipped.list_models()[name]["file"] == f"{model.checkpoint}.safetensors"


def test_torchs_defaults_do_not_change_a_shipped_model():
    expected = state_bytes(shipped.load_model("plain_cnn"))
    with other_defaults():
        model = shipped.load_model("plain_cnn")
    assert state_bytes(model) == expected
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_number_of_shipped_weights_that_changed_is_an_error(repository):
    path = repository / f"data/checkpoints/{ship()}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*tensors have changed.*`git"):
        shipped.load_model("multitask_autoencoder")


@pytest.mark.parametrize(
    "content, command",
    [
        (lambda old: old[:1000], "git checkout -- data/checkpoints/"),
        (lambda old: POINTER, "git lfs pull --include data/checkpoints/"),
    ],
)
def test_damaged_shipped_weights_are_named_with_gits_command(repository, content, command):
    path = repository / f"data/checkpoints/{ship()}.safetensors"
    path.write_bytes(content(path.read_bytes()))
    for call in (lambda: shipped.load_model("multitask_autoencoder"), shipped.list_models):
        with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*`{command}{path.name}`"):
            call()


def test_list_models_gives_file_provenance_and_metrics(repository):
    stem = ship(epochs=2)
    rows = [
        row(method="margin", ood="kmnist", value=0.75, weights=stem),
        row(method="margin", ood="kmnist", value=0.5, weights=stem, seed=1),
        row(method="another model", weights="cnn-0123456789ab"),
    ]
    store_rows(repository, rows)  # what this run has saved, and what else is stored
    results.save_results("07_test", [row(method="sum", weights=stem)], {})
    (found,) = shipped.list_models().items()
    assert found[0] == "multitask_autoencoder"
    assert found[1]["file"] == f"{stem}.safetensors"
    assert found[1]["config"] == {"seed": 0, "epochs": 2}
    assert found[1]["trained"]["device"] == "cpu"
    assert found[1]["metrics"] == {
        "margin | mnist | kmnist | auroc": 0.75, "sum | mnist | fashionmnist | auroc": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "environment, word",
    [({"OSR_PROFILE": "demo"}, "demo"), ({"OSR_RETRAIN": "1"}, "retraining")],
)
def test_a_demo_and_a_retraining_say_which_weights_they_give(
    repository, monkeypatch, capsys, environment, word
):
    ship()
    capsys.readouterr()
    shipped.load_model("multitask_autoencoder")
    assert capsys.readouterr().out == ""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(FileNotFoundError, match="train it first"):
        shipped.load_model("multitask_autoencoder")
    own = train_autoencoder(epochs=1)
    capsys.readouterr()
    assert shipped.load_model("multitask_autoencoder").checkpoint == own
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("multitask_autoencoder: ")
    for part in (own, f"this {word}", *environment):  # what they are, and what brings others
        assert part in said


@pytest.mark.parametrize("environment", [{"OSR_PROFILE": "demo"}, {"OSR_RETRAIN": "1"}])
def test_of_several_own_weights_the_last_used_are_loaded(repository, monkeypatch, environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    first, second = (train_autoencoder(epochs=epochs) for epochs in (1, 2))
    for age, stem in ((100, first), (50, second)):
        path = paths.checkpoint_dir() / f"{stem}.safetensors"
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert shipped.load_model("multitask_autoencoder").checkpoint == second
    for stem in (first, second):  # as on a disk with coarse times
        os.utime(paths.checkpoint_dir() / f"{stem}.safetensors", (1, 1))
    found = {shipped.load_model("multitask_autoencoder").checkpoint for _ in range(3)}
    assert len(found) == 1 and found <= {first, second}
    assert train_autoencoder(epochs=1) == first  # loads it
    assert shipped.load_model("multitask_autoencoder").checkpoint == first
