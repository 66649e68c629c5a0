"""Stored weights, shipped models, result files and figures."""

import json
import math
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import osr_utils

pytestmark = pytest.mark.usefixtures("sandbox")


def files(folder):
    """Return the names of all files below a folder."""
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


# --- folders --------------------------------------------------------------------------------------


def test_outputs_go_where_the_environment_says(sandbox, monkeypatch):
    assert osr_utils.output_dir() == (sandbox / "out").resolve()
    assert osr_utils.results_dir() == (sandbox / "out/report/results").resolve()
    monkeypatch.delenv("OSR_OUTPUT")
    assert osr_utils.output_dir() == osr_utils.ROOT
    monkeypatch.setenv("OSR_PROFILE", "demo")
    assert osr_utils.output_dir() == osr_utils.ROOT / ".demo"


def test_only_a_plain_full_run_reads_the_shipped_weights(sandbox, monkeypatch):
    own = (sandbox / "out/checkpoints").resolve()
    assert osr_utils.checkpoint_dir() == osr_utils.ROOT / "data/checkpoints"
    monkeypatch.setenv("OSR_RETRAIN", "1")
    assert osr_utils.checkpoint_dir() == own
    monkeypatch.setenv("OSR_RETRAIN", "0")
    monkeypatch.setenv("OSR_PROFILE", "demo")
    assert osr_utils.checkpoint_dir() == own


# --- fit_or_load ----------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self, width=11):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("alpha", torch.ones(()))

    def forward(self, x):
        return self.norm(self.layer(x)) * self.alpha


class Job:
    """One call of fit_or_load; counts its trainings."""

    def __init__(self, name="tiny", build=Tiny, note="", images=(1, 2, 3), fail=None, **config):
        self.name, self.build, self.note, self.fail = name, build, note, fail
        self.config = {"seed": 0, "lr": 0.1} | config
        self.data = {"images": np.array(images, np.uint8), "labels": np.array([0, 1, 2])}
        self.trainings = 0

    def train(self, model):
        self.trainings += 1
        if self.fail:
            raise self.fail
        model(torch.randn(32, 4)).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= self.config["lr"] * parameter.grad
        model.alpha.fill_(362.37)

    def run(self):
        return osr_utils.fit_or_load(
            self.name, self.config, self.train, build=self.build, data=self.data, note=self.note
        )


@pytest.fixture
def folder(monkeypatch, sandbox):
    """Return the folder of the weights, a temporary one."""
    monkeypatch.setenv("OSR_RETRAIN", "1")
    return osr_utils.checkpoint_dir()


@torch.no_grad()
def output(model):
    return model(torch.linspace(-1, 1, 20).view(5, 4))


def test_the_first_call_trains_and_the_second_loads_the_same_bits(folder):
    job = Job()
    first, second = job.run(), job.run()
    assert job.trainings == 1 and files(folder) == [f"{first.checkpoint}.safetensors"]
    assert re.fullmatch("tiny-[0-9a-f]{12}", first.checkpoint)
    assert first.checkpoint == second.checkpoint
    assert torch.equal(output(first), output(second))
    assert not any(module.training for m in (first, second) for module in m.modules())


def test_parameters_are_stored_in_half_precision_and_buffers_as_they_are(folder):
    trained = []
    job = Job()
    train = job.train
    job.train = lambda model: (train(model), trained.append(model))
    model = job.run()
    stored = safetensors.torch.load_file(folder / f"{model.checkpoint}.safetensors")
    assert stored["layer.weight"].dtype == torch.float16
    assert stored["norm.running_var"].dtype == torch.float32
    for key, value in trained[0].state_dict().items():
        expected = value.half().float() if key in dict(model.named_parameters()) else value
        assert torch.equal(model.state_dict()[key], expected), key
    assert model.alpha == torch.tensor(362.37) and model.layer.weight.dtype == torch.float32


def test_the_seed_decides_the_start_and_the_training(folder):
    first = output(Job().run())
    for file in folder.iterdir():
        file.unlink()
    torch.rand(3)  # what happened before does not matter
    assert torch.equal(output(Job().run()), first)
    assert not torch.equal(output(Job(seed=1).run()), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.2}, {"width": [1, 2]}])
def test_another_config_trains_anew(folder, change):
    Job().run()
    job = Job(**change)
    job.run()
    assert job.trainings == 1 and len(files(folder)) == 2


def test_a_config_is_compared_as_json(folder):
    Job(sizes=(1, 2), names={"b": 1, "a": 2}).run()
    job = Job(names={"a": 2, "b": 1}, sizes=[1, 2])
    job.run()
    assert job.trainings == 0


def test_the_metadata_say_where_the_weights_come_from(folder):
    job = Job()
    meta = osr_utils.checkpoint_metadata(folder / f"{job.run().checkpoint}.safetensors")
    assert meta["name"] == "tiny" and meta["config"] == job.config
    assert meta["data"] == {key: osr_utils.checksum(value) for key, value in job.data.items()}
    assert meta["trained"]["device"] == "cpu" and meta["trained"]["torch"] == torch.__version__
    assert meta["trained"]["seconds"] >= 0


def test_other_data_without_a_note_is_an_error_that_names_both_sums(folder):
    shipped, mine = Job(), Job(images=(9, 9, 9))
    name = shipped.run().checkpoint
    with pytest.raises(ValueError, match="trained on other data") as caught:
        mine.run()
    for part in (name, *(osr_utils.checksum(job.data["images"]) for job in (shipped, mine))):
        assert part in str(caught.value)
    assert mine.trainings == 0 and len(files(folder)) == 1


def test_other_data_with_a_note_load_the_shipped_weights_with_one_line(folder, capsys):
    shipped = Job().run()
    capsys.readouterr()
    job = Job(images=(9, 9, 9), note="a lossy copy")
    model = job.run()
    assert job.trainings == 0 and model.checkpoint == shipped.checkpoint
    assert torch.equal(output(model), output(shipped))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "a lossy copy" in printed and "tiny" in printed


def test_the_same_data_with_a_note_load_in_silence(folder, capsys):
    Job(note="a lossy copy").run()
    assert "training, seed 0" in capsys.readouterr().out
    job = Job(note="a lossy copy")
    job.run()
    assert job.trainings == 0 and capsys.readouterr().out == ""


def test_the_first_training_on_data_with_a_note_trains(folder):
    job = Job(note="a lossy copy")
    job.run()
    assert job.trainings == 1


@pytest.mark.parametrize("images", [(1, 2, 3), (9, 9, 9)])
@pytest.mark.parametrize("note", ["", "a lossy copy"])
def test_a_name_that_begins_with_another_is_another_model(folder, images, note):
    Job(name="tiny-wide", images=images).run()
    job = Job(name="tiny", note=note)
    assert job.run().checkpoint.startswith("tiny-") and job.trainings == 1


@pytest.mark.parametrize(
    "content",
    [
        lambda old: old[: len(old) // 2],
        lambda old: old[:-1],
        lambda old: old[:4],
        lambda old: b"",
        lambda old: b"<html>404</html>" * 40,
        lambda old: old[:8] + b"}" + old[9:],
    ],
)
@pytest.mark.parametrize("same_data", [True, False])
def test_damaged_weights_name_the_file(folder, content, same_data):
    path = folder / f"{Job().run().checkpoint}.safetensors"
    path.write_bytes(content(path.read_bytes()))
    job = Job() if same_data else Job(images=(9, 9, 9))
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        job.run()
    assert job.trainings == 0


@pytest.mark.parametrize("build", [lambda: Tiny(12), lambda: nn.Linear(4, 11)])
def test_weights_that_do_not_fit_name_the_file(folder, build):
    path = folder / f"{Job().run().checkpoint}.safetensors"
    with pytest.raises(ValueError, match=f"{path} is damaged or does not fit"):
        Job(build=build).run()


@pytest.mark.parametrize("failure", [RuntimeError("diverged"), KeyboardInterrupt()])
def test_a_failed_training_leaves_nothing(folder, failure):
    with pytest.raises(type(failure)):
        Job(fail=failure).run()
    assert files(folder) == []
    Job().run()
    assert len(files(folder)) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_nothing(folder, monkeypatch, failure):
    def half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(type(failure)):
            Job().run()
    assert files(folder) == []
    job = Job()
    job.run()
    assert job.trainings == 1 and len(files(folder)) == 1


def test_a_folder_of_weights_that_cannot_be_is_an_error_with_advice(folder):
    folder.parent.mkdir()
    folder.write_text("a file in the folder's place")
    with pytest.raises(OSError, match="cannot write .* a writable folder"):
        Job().run()


# --- load_model, list_models ----------------------------------------------------------------------


@pytest.fixture
def repository(monkeypatch, sandbox):
    """Stand an empty repository in for this one, which ships a single model."""
    root = sandbox / "repository"
    root.mkdir()
    monkeypatch.setattr(osr_utils, "ROOT", root)
    shipped = {"multitask_autoencoder": osr_utils.MultitaskAutoencoder}
    monkeypatch.setattr(osr_utils, "SHIPPED", shipped)
    monkeypatch.delenv("OSR_OUTPUT")
    return root


def ship(seed=0, name="multitask_autoencoder", images=(1, 2, 3), **config):
    return osr_utils.fit_or_load(
        name,
        {"seed": seed} | config,
        lambda model: model.alpha.fill_(5),
        build=osr_utils.MultitaskAutoencoder,
        data={"images": np.array(images)},
    ).checkpoint


@torch.no_grad()
def test_a_shipped_model_is_ready_to_use(repository):
    ship(seed=1)
    name = ship(seed=0)
    assert len(files(repository / "data/checkpoints")) == 2
    model = osr_utils.load_model("multitask_autoencoder")
    logits = model(torch.rand(3, 1, 28, 28))
    assert model.checkpoint == name and not model.training and model.alpha == 5
    assert logits.shape == (3, 11) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet", "", "multitask", "../multitask_autoencoder"])
def test_an_unknown_model_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="no shipped model.*there are multitask_autoencoder"):
        osr_utils.load_model(name)


def test_missing_and_ambiguous_weights_name_the_folder(repository):
    with pytest.raises(FileNotFoundError, match=f"0 weight files .*{repository}"):
        osr_utils.load_model("multitask_autoencoder")
    name = ship()
    folder = osr_utils.checkpoint_dir()
    shutil.copy(folder / f"{name}.safetensors", folder / "multitask_autoencoder-copy.safetensors")
    with pytest.raises(FileNotFoundError, match="2 weight files"):
        osr_utils.load_model("multitask_autoencoder")


def test_weights_of_ones_own_configuration_leave_the_shipped_ones_alone(repository):
    name = ship()
    own = ship(lr=1)
    assert own != name and ship(lr=1) == own
    assert [path.stem for path in osr_utils.checkpoint_dir().glob("*.safetensors")] == [name]
    assert osr_utils.load_model("multitask_autoencoder").checkpoint == name


@pytest.mark.parametrize("other", ["multitask_autoencoder-wide", "multitask_autoencoder2"])
def test_a_model_whose_name_goes_on_is_not_in_the_way(repository, other):
    ship(name=other, epochs=2)
    name = ship()
    assert osr_utils.load_model("multitask_autoencoder").checkpoint == name
    assert osr_utils.list_models()["multitask_autoencoder"]["file"] == f"{name}.safetensors"


@pytest.mark.parametrize("name", osr_utils.SHIPPED)
@torch.no_grad()
def test_every_shipped_model_is_ready_and_keeps_the_contract(name):
    model = osr_utils.load_model(name)
    output = model(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (4, 11) and output.dtype == torch.float32 and output.isfinite().all()
    assert not any(module.training for module in model.modules())
    assert getattr(model, "alpha", 0) != 1
    assert osr_utils.list_models()[name]["file"] == f"{model.checkpoint}.safetensors"


def test_damaged_shipped_weights_name_the_file(repository):
    path = repository / f"data/checkpoints/{ship()}.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        osr_utils.load_model("multitask_autoencoder")


def test_list_models_gives_file_provenance_and_metrics(repository):
    stem = ship(epochs=2)
    rows = [
        row(method="margin", ood="kmnist", value=0.75, weights=stem),
        row(method="margin", ood="kmnist", value=0.5, weights=stem, seed=1),
        row(method="another model", weights="cnn-0123456789ab"),
    ]
    osr_utils.save_results("03_test", rows, {})
    osr_utils.save_results("07_test", [row(method="sum", weights=stem)], {})
    (found,) = osr_utils.list_models().items()
    assert found[0] == "multitask_autoencoder"
    assert found[1]["file"] == f"{stem}.safetensors"
    assert found[1]["config"] == {"seed": 0, "epochs": 2}
    assert found[1]["trained"]["device"] == "cpu"
    assert found[1]["metrics"] == {
        "margin | mnist | kmnist | auroc": 0.75, "sum | mnist | fashionmnist | auroc": 0.5,
    }  # fmt: skip


# --- results --------------------------------------------------------------------------------------


def row(**changes):
    return {
        "system": "A", "method": "margin", "id": "mnist", "ood": "fashionmnist", "seed": 0,
        "metric": "auroc", "value": 0.5, "weights": "",
    } | changes  # fmt: skip


def saved(notebook="03_test"):
    return json.loads((osr_utils.results_dir() / f"{notebook}.json").read_text(encoding="utf-8"))


def test_results_come_back_as_they_were_saved():
    rows = [row(), row(metric="fpr95", value=0.1234567), row(ood="", metric="accuracy", value=1)]
    config = {"epochs": 3, "text": 'é {"system" ,\n   }', "nested": {"a": [1, {"b": [2, 3]}]}}
    osr_utils.save_results("03_test", rows, config, data_notes={"svhn": "a part"})
    assert osr_utils.read_results("03_test") == [
        row(), row(metric="fpr95", value=0.123457), row(ood="", metric="accuracy", value=1),
    ]  # fmt: skip
    assert {key: saved()[key] for key in ("profile", "config", "data_notes")} == {
        "profile": "full", "config": config, "data_notes": {"svhn": "a part"},
    }  # fmt: skip
    assert files(osr_utils.results_dir()) == ["03_test.json"]


def test_a_result_file_holds_one_line_a_row():
    osr_utils.save_results("03_test", [row(), row(seed=1)], {})
    lines = (osr_utils.results_dir() / "03_test.json").read_text().splitlines()
    assert sum('"system"' in line and '"weights"' in line for line in lines) == 2


def test_results_of_the_demo_say_so(monkeypatch):
    monkeypatch.setenv("OSR_PROFILE", "demo")
    osr_utils.save_results("03_test", [row()], {})
    assert saved()["profile"] == "demo"


def test_no_results_yet_is_an_empty_list():
    assert osr_utils.read_results("03_test") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="bad row.*a finite value"):
        osr_utils.save_results("03_test", [row(), row(seed=1, value=value)], {})
    assert osr_utils.read_results("03_test") == []


@pytest.mark.parametrize("key", list(row()))
def test_a_row_without_one_of_its_keys_is_refused(key):
    bad = {name: value for name, value in row().items() if name != key}
    with pytest.raises(ValueError, match="bad row.*system, method, id, ood, seed, metric"):
        osr_utils.save_results("03_test", [bad], {})


def test_a_row_with_another_key_is_refused():
    with pytest.raises(ValueError, match="bad row"):
        osr_utils.save_results("03_test", [row(epoch=3)], {})


def test_two_values_of_one_thing_are_refused():
    with pytest.raises(ValueError, match="'fashionmnist', 0, 'auroc'.* stands twice"):
        osr_utils.save_results("03_test", [row(), row(value=0.6, weights="x")], {})
    different = {
        "system": "B", "method": "sum", "id": "svhn", "ood": "", "seed": 1, "metric": "aupr_in",
    }  # fmt: skip
    rows = [row(), *(row(**{key: value}) for key, value in different.items())]
    osr_utils.save_results("03_test", rows, {})
    assert len(osr_utils.read_results("03_test")) == 7


def test_committed_rows_of_other_seeds_are_kept(repository):
    old = [row(seed=seed, value=seed / 10) for seed in range(3)]
    old += [row(method="dropped", seed=seed) for seed in range(3)]
    osr_utils.save_results("03_test", old, {})
    osr_utils.save_results("03_test", [row(seed=0, value=0.9), row(method="new")], {})
    found = {(r["method"], r["seed"]): r["value"] for r in osr_utils.read_results("03_test")}
    assert found == {("margin", 0): 0.9, ("new", 0): 0.5, ("margin", 1): 0.1, ("margin", 2): 0.2}


def test_a_run_elsewhere_keeps_committed_rows_and_leaves_the_file(repository, monkeypatch, sandbox):
    osr_utils.save_results("03_test", [row(seed=0), row(seed=1, value=0.25)], {})
    committed = (repository / "report/results/03_test.json").read_bytes()
    monkeypatch.setenv("OSR_OUTPUT", str(sandbox / "elsewhere"))
    osr_utils.save_results("03_test", [row(seed=0, value=0.75)], {})
    assert [r["value"] for r in osr_utils.read_results("03_test")] == [0.75, 0.25]
    assert (repository / "report/results/03_test.json").read_bytes() == committed


def test_rows_of_another_configuration_are_dropped_and_said_so(repository, capsys):
    osr_utils.save_results("03_test", [row(seed=0), row(seed=1)], {"epochs": 120})
    osr_utils.save_results("03_test", [row(seed=0)], {"epochs": 1})
    assert [r["seed"] for r in osr_utils.read_results("03_test")] == [0]
    assert "another configuration" in capsys.readouterr().out


def test_the_demo_keeps_no_committed_rows(repository, monkeypatch):
    osr_utils.save_results("03_test", [row(seed=0), row(seed=1)], {})
    monkeypatch.setenv("OSR_PROFILE", "demo")
    osr_utils.save_results("03_test", [row(seed=0)], {})
    assert len(osr_utils.read_results("03_test")) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_failed_save_keeps_the_old_results(monkeypatch, failure, where):
    def half(path, text, **_):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
        raise failure

    def no(*_):
        raise failure

    osr_utils.save_results("03_test", [row()], {})
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", no)
        with pytest.raises(type(failure)):
            osr_utils.save_results("03_test", [row(value=0.9)], {})
    assert osr_utils.read_results("03_test") == [row()]
    assert files(osr_utils.output_dir()) == ["03_test.json"]


def test_a_folder_that_cannot_be_is_an_error_with_advice(sandbox):
    (sandbox / "out").write_text("a file in the folder's place")
    for save in (
        lambda: osr_utils.save_results("03_test", [row()], {}),
        lambda: osr_utils.save_figure(plt.figure(), "test"),
    ):
        with pytest.raises(OSError, match="cannot write .*out.* Make .* a writable folder"):
            save()
    plt.close("all")
    assert files(sandbox) == ["out"]


# --- figures --------------------------------------------------------------------------------------


def draw():
    fig, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1, 3], label="café")
    axes.legend()
    osr_utils.save_figure(fig, "test")
    plt.close(fig)
    folder = osr_utils.output_dir() / "figures"
    assert files(folder) == ["test.pdf", "test.png"]
    return (folder / "test.png").read_bytes(), (folder / "test.pdf").read_bytes()


def test_a_figure_is_written_twice_with_the_same_bytes_and_no_date():
    png, pdf = draw()
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert (png, pdf) == draw()
    for mark in (b"CreationDate", b"ModDate", b"D:20", b"tIME", b"Creation Time", b"date:"):
        assert mark not in png + pdf


def test_a_failed_figure_leaves_the_old_one(monkeypatch):
    png, pdf = draw()

    def half(fig, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(KeyboardInterrupt):
        draw()
    plt.close("all")
    folder = osr_utils.output_dir() / "figures"
    assert files(folder) == ["test.pdf", "test.png"]
    assert (folder / "test.png").read_bytes() == png


def test_the_style_changes_what_it_should():
    with plt.rc_context():
        osr_utils.use_report_style()
        assert plt.rcParams["font.size"] == 8 and not plt.rcParams["axes.spines.top"]
        assert plt.rcParams["figure.figsize"][0] == osr_utils.COLUMN_WIDTH == 3.3
    names = list(osr_utils.COLORS)
    starts = [names.index(name) for name in ("mnist", "mnist-rest", "reconstruction", "plain_cnn")]
    for group in (names[i:j] for i, j in pairwise([*starts, None])):  # drawn together
        assert len({osr_utils.COLORS[name] for name in group}) == len(group)


def test_rows_are_laid_out_by_seed_and_as_mean_and_deviation():
    row = {"system": "A", "method": "m", "id": "mnist", "metric": "accuracy", "weights": ""}
    rows = [row | {"ood": "", "seed": seed, "value": value} for seed, value in ((0, 0.5), (1, 0.7))]
    rows.append(row | {"ood": "kmnist", "seed": 0, "value": 0.25, "metric": "auroc"})
    head, first, second = osr_utils.format_rows(rows).split("\n")
    assert head.split() == ["method", "id", "ood", "accuracy", "auroc"]
    assert first.split() == ["m", "mnist", "0.500"]
    assert second.split() == ["m", "mnist", "kmnist", "0.250"]
    assert "0.600 ± 0.100" in osr_utils.format_rows(rows, seed=None)
