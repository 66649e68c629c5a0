"""Trained weights: stored, found again, shipped."""

import json
import re
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from helpers import (
    POINTER,
    STRANGER,
    files,
    literal,
    other_defaults,
    run_cell,
    ship,
    state_bytes,
    train_autoencoder,
)
from osr import paths, shipped, weights

pytestmark = pytest.mark.usefixtures("sandbox")


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
        model.log["history"] = torch.tensor([0.75, 0.5], dtype=torch.float64)

    def run(self):
        return weights.fit_or_load(
            self.name, self.config, self.train, build=self.build, data=self.data, note=self.note
        )


@pytest.fixture
def folder(monkeypatch, sandbox):
    """Return the folder of the weights that a retraining stores, a temporary one."""
    monkeypatch.setenv("OSR_RETRAIN", "1")
    return paths.checkpoint_dir()


def to_shipped(model):
    """Move weights that have just been stored to those that ship; return their path."""
    file = f"{model.checkpoint}.safetensors"
    paths.shipped_dir().mkdir(parents=True, exist_ok=True)
    return (paths.checkpoint_dir() / file).rename(paths.shipped_dir() / file)


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
    meta = weights.checkpoint_metadata(folder / f"{job.run().checkpoint}.safetensors")
    assert meta["name"] == "tiny" and meta["config"] == job.config
    assert meta["data"] == {key: paths.checksum(value) for key, value in job.data.items()}
    assert meta["trained"]["device"] == "cpu" and meta["trained"]["torch"] == torch.__version__
    assert meta["trained"]["seconds"] >= 0


def test_other_data_without_a_note_is_an_error_that_names_both_sums(repository):
    shipped, mine = Job(), Job(images=(9, 9, 9))
    name = to_shipped(shipped.run()).stem
    with pytest.raises(ValueError, match="trained on other data") as caught:
        mine.run()
    for part in (name, *(paths.checksum(job.data["images"]) for job in (shipped, mine))):
        assert part in str(caught.value)
    assert mine.trainings == 0 and files(repository) == sorted([STRANGER, f"{name}.safetensors"])


def test_other_data_with_a_note_load_the_shipped_weights_with_one_line(repository, capsys):
    shipped = Job().run()
    to_shipped(shipped)
    capsys.readouterr()
    job = Job(images=(9, 9, 9), note="a lossy copy")
    model = job.run()
    assert job.trainings == 0 and model.checkpoint == shipped.checkpoint
    assert torch.equal(output(model), output(shipped))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "a lossy copy" in printed and "tiny" in printed


def test_the_same_data_with_a_note_load_without_a_remark(repository, capsys):
    model = Job(note="a lossy copy").run()
    assert "training, seed 0" in capsys.readouterr().out
    for place in (lambda model: None, to_shipped):
        place(model)
        job = Job(note="a lossy copy")
        job.run()
        assert job.trainings == 0 and capsys.readouterr().out == f"loaded {model.checkpoint}\n"


def test_retrained_weights_of_other_data_are_other_weights(folder):
    Job().run()
    job = Job(images=(9, 9, 9))
    job.run()
    assert job.trainings == 1 and len(files(folder)) == 2


def test_the_first_training_on_data_with_a_note_trains(folder):
    job = Job(note="a lossy copy")
    job.run()
    assert job.trainings == 1


@pytest.mark.parametrize("images", [(1, 2, 3), (9, 9, 9)])
@pytest.mark.parametrize("note", ["", "a lossy copy"])
@pytest.mark.parametrize("place", [lambda model: None, to_shipped])
def test_a_name_that_begins_with_another_is_another_model(repository, images, note, place):
    place(Job(name="tiny-wide", images=images).run())
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
@pytest.mark.parametrize("place", ["own", "shipped", "shipped, other data"])
def test_damaged_weights_name_the_file(repository, content, place):
    model = Job().run()
    path = paths.checkpoint_dir() / f"{model.checkpoint}.safetensors"
    if place != "own":
        path = to_shipped(model)
    path.write_bytes(content(path.read_bytes()))
    job = Job(images=(9, 9, 9)) if "other" in place else Job()
    way = "delete it" if place == "own" else f"git checkout -- data/checkpoints/{path.name}"
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*{way}") as caught:
        job.run()
    assert job.trainings == 0 and ("delete" in str(caught.value)) == (place == "own")


def test_a_pointer_in_the_place_of_shipped_weights_is_named_with_gits_command(repository):
    path = to_shipped(Job().run())
    path.write_bytes(POINTER)
    command = f"git lfs pull --include data/checkpoints/{path.name}"
    with pytest.raises(
        ValueError, match=f"{literal(path)} is damaged.*pointer of Git LFS.*`{command}`"
    ):
        Job().run()


def test_a_clone_without_any_weights_is_named_and_nothing_is_trained(repository, monkeypatch):
    (repository / "data/checkpoints" / STRANGER).unlink()
    job = Job()
    for folder in (repository / "data/checkpoints", None):
        with pytest.raises(FileNotFoundError) as caught:
            job.run()
        for part in (
            f"no weights in {paths.shipped_dir()}", "`git checkout -- data/checkpoints`",
            "git sparse-checkout disable",
        ):  # fmt: skip
            assert part in str(caught.value)
        if folder:
            folder.rmdir()  # or without the folder
    assert job.trainings == 0 and not files(repository)
    monkeypatch.setenv("OSR_RETRAIN", "1")  # needs none
    job.run()
    assert job.trainings == 1


@pytest.mark.parametrize("build", [lambda: Tiny(12), lambda: nn.Linear(4, 11)])
@pytest.mark.parametrize("shipped", [True, False])
def test_weights_that_do_not_fit_name_the_file(repository, build, shipped):
    model = Job().run()
    path = paths.checkpoint_dir() / f"{model.checkpoint}.safetensors"
    path = to_shipped(model) if shipped else path
    with pytest.raises(ValueError, match=f"{literal(path)} does not fit .*one key more"):
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


def test_a_folder_of_weights_that_cannot_be_is_an_error_with_advice_before_all_work(folder):
    folder.parent.mkdir()
    folder.write_text("a file in the folder's place")
    job = Job()
    with pytest.raises(OSError, match="cannot write .* a writable folder"):
        job.run()
    assert job.trainings == 0


@pytest.mark.parametrize("name", ["../tiny", "a/tiny", "a\\tiny", "/tiny", "", "nul", "tiny ", 3])
def test_a_name_that_cannot_be_a_files_everywhere_is_refused_before_all_work(folder, sandbox, name):
    job = Job(name=name)
    with pytest.raises(ValueError, match="cannot name a file"):
        job.run()
    assert job.trainings == 0 and files(sandbox) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer.weight", "norm.running_var", "alpha"])
def test_a_training_that_diverged_is_named_and_not_stored(folder, key, value):
    job = Job()
    train = job.train
    job.train = lambda model: (train(model), model.state_dict()[key].view(-1)[-1:].fill_(value))
    with pytest.raises(FloatingPointError, match=f"tiny: the training diverged.*in {key};"):
        job.run()
    assert job.trainings == 1 and files(folder) == []
    Job().run()
    assert len(files(folder)) == 1


def test_a_weight_beyond_half_precision_comes_back_as_it_was_trained(folder):
    job = Job()
    job.train = lambda model: nn.init.constant_(model.layer.bias, 70000)
    assert torch.equal(job.run().layer.bias, torch.full((11,), 70000.0))


def test_torchs_defaults_change_nothing(repository):
    jobs, found = (Job(), Job(), Job(seed=1)), []
    expected = [state_bytes(job.run()) for job in jobs]
    for path in paths.checkpoint_dir().iterdir():
        path.unlink()
    with other_defaults():
        for job in jobs:  # trains, loads, trains
            found.append(job.run())
        assert torch.get_default_dtype() == torch.float64 and torch.ones(1).is_meta
    assert [state_bytes(model) for model in found] == expected
    assert {tensor.dtype for tensor in found[0].parameters()} == {torch.float32}
    assert [job.trainings for job in jobs] == [2, 0, 2]


# --- what a training leaves behind ----------------------------------------------------------------


@pytest.mark.parametrize("shipped", [True, False])
def test_the_log_comes_back_bit_for_bit(repository, shipped):
    left = {
        "history": torch.tensor([0.1, 0.2], dtype=torch.float64),
        "gallery": torch.rand(2, 3, 4).transpose(0, 2),
        "counts": torch.tensor([1, 2]),
    }

    def train(model):
        assert model.log == {}
        model.log.update(left)

    def call():
        data = {"images": np.zeros(3)}
        return weights.fit_or_load("tiny", {"seed": 0}, train, build=Tiny, data=data)

    first = call()
    if shipped:
        to_shipped(first)
    for log in (first.log, call().log):
        assert set(log) == set(left)
        for key, value in left.items():
            assert torch.equal(log[key], value) and log[key].dtype == value.dtype


def test_a_log_can_be_all_there_is(repository):
    def curve(model):
        model.log["history"] = torch.arange(3.0)

    def call():
        data = {"images": np.zeros(2, np.uint8)}
        return weights.fit_or_load("curve", {"seed": 0}, curve, build=nn.Identity, data=data)

    for _ in range(2):  # trained, and found again
        assert call().log["history"].tolist() == [0, 1, 2]


def test_what_is_logged_is_no_part_of_the_network(folder):
    model = Job().run()
    assert model.log["history"].tolist() == [0.75, 0.5]
    assert set(model.state_dict()) == set(Tiny().state_dict())
    path = folder / f"{model.checkpoint}.safetensors"
    assert "log.history" in safetensors.torch.load_file(path)
    assert weights.load_weights(Tiny(), path).log["history"].tolist() == [0.75, 0.5]


def test_a_training_that_logs_nothing_has_an_empty_log(repository):
    ship()
    assert shipped.load_model("multitask_autoencoder").log == {}


# --- has the code changed since? ------------------------------------------------------------------


TINY = ("Tiny.__init__", "Tiny.forward")


def set_alpha(model):
    model.alpha.fill_(5)


def set_alpha_otherwise(model):
    model.alpha.fill_(5.0)


def call_by_name(name, train=set_alpha, build=Tiny):
    """Call fit_or_load with a function that gives itself out as `train`."""
    renamed = FunctionType(train.__code__, train.__globals__, name)
    renamed.__qualname__ = name
    data = {"images": np.zeros(3)}
    return weights.fit_or_load("tiny", {"seed": 0}, renamed, build=build, data=data)


LOSSES = {  # how a loss comes to the training
    "a lambda": "loss = lambda x: x - 1\ndef train(model): loss(1)",
    "a partial": "def f(x, y): return x - 1\nloss = partial(f, y=1)\ndef train(model): loss(1)",
    "a dict": "def f(x): return x - 1\nlosses = {'f': f}\ndef train(model): losses['f'](1)",
    "a default": "def f(x): return x - 1\ndef train(model, loss=f): loss(1)",
    "a closure": "def of(loss):\n    def train(model): loss(1)\n    return train\n"
    "def f(x): return x - 1\ntrain = of(f)",
    "an object": "class Loss:\n    def __call__(self, x): return x - 1\n"
    "loss = Loss()\ndef train(model): loss(1)",
}


@pytest.mark.parametrize("text", LOSSES.values(), ids=LOSSES)
def test_a_changed_loss_is_said_however_it_is_given(repository, capsys, text):
    def call(text):
        train = run_cell(f"from functools import partial\n{text}")["train"]
        data = {"images": np.zeros(3)}
        return weights.fit_or_load("tiny", {"seed": 0}, train, build=Tiny, data=data)

    stem = call(text).checkpoint
    capsys.readouterr()
    call(text)
    assert capsys.readouterr().out == f"loaded {stem}\n"
    assert text.count("x - 1") == 1
    call(text.replace("x - 1", "x + 1"))
    assert "changed since" in capsys.readouterr().out


class Wider(Tiny):
    """The same tensors, from a network that is written differently."""

    def forward(self, x):
        return super().forward(x) * 1


@pytest.mark.parametrize("shipped", [True, False])
def test_changed_code_is_said_and_the_weights_are_used(repository, capsys, shipped):
    model = call_by_name("train")
    path = paths.checkpoint_dir() / f"{model.checkpoint}.safetensors"
    path = to_shipped(model) if shipped else path
    before = path.read_bytes()
    capsys.readouterr()
    assert torch.equal(output(call_by_name("train")), output(model))
    assert capsys.readouterr().out == f"loaded {model.checkpoint}\n"
    assert torch.equal(output(call_by_name("train", set_alpha_otherwise)), output(model))
    assert capsys.readouterr().out == (
        f"loaded {model.checkpoint} (train changed since; to train anew, give config one key more)"
        "\n"
    )
    call_by_name("train", build=Wider)
    assert "(Wider.forward changed since" in capsys.readouterr().out
    call_by_name("fit")
    assert "(fit, train changed since" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize("shipped", [True, False])
def test_accepted_code_changes_the_stamp_alone(repository, capsys, monkeypatch, shipped):
    model = call_by_name("train")
    path = paths.checkpoint_dir() / f"{model.checkpoint}.safetensors"
    path = to_shipped(model) if shipped else path
    tensors, meta = safetensors.torch.load_file(path), weights.checkpoint_metadata(path)
    loaded = f"loaded {model.checkpoint}\n"
    capsys.readouterr()
    monkeypatch.setenv("OSR_ACCEPT_SOURCE", "1")
    call_by_name("train")
    stamped = path.stat().st_mtime_ns
    again = call_by_name("train", set_alpha_otherwise)
    assert capsys.readouterr().out == 2 * loaded and torch.equal(output(again), output(model))
    monkeypatch.delenv("OSR_ACCEPT_SOURCE")
    call_by_name("train", set_alpha_otherwise)
    assert capsys.readouterr().out == loaded
    call_by_name("train")
    assert "train changed" in capsys.readouterr().out
    now = safetensors.torch.load_file(path)
    assert list(now) == list(tensors) and path.stat().st_mtime_ns >= stamped
    for key, value in tensors.items():
        assert now[key].dtype == value.dtype and torch.equal(now[key], value)
    told = weights.checkpoint_metadata(path)
    assert told.pop("source") != meta.pop("source") and told == meta
    assert files(repository) == sorted([STRANGER, path.name])


def test_damaged_weights_are_not_accepted_with_the_code(repository, monkeypatch):
    path = to_shipped(call_by_name("train"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("OSR_ACCEPT_SOURCE", "1")
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*tensors have changed"):
        call_by_name("train", set_alpha_otherwise)
    assert path.read_bytes() == content
    monkeypatch.setenv("OSR_ACCEPT_SOURCE", "yes")
    with pytest.raises(ValueError, match="OSR_ACCEPT_SOURCE='yes': use 1"):
        call_by_name("train")


def test_weights_that_were_stored_without_their_code_get_it_when_accepted(
    repository, capsys, monkeypatch
):
    path = to_shipped(call_by_name("train"))
    meta = weights.checkpoint_metadata(path)
    del meta["source"]
    tensors = safetensors.torch.load_file(path)
    path.write_bytes(safetensors.torch.save(tensors, {"meta": json.dumps(meta)}))
    loaded = f"loaded {path.stem}\n"
    capsys.readouterr()
    call_by_name("train")
    assert capsys.readouterr().out == loaded and "source" not in weights.checkpoint_metadata(path)
    monkeypatch.setenv("OSR_ACCEPT_SOURCE", "1")
    call_by_name("train")
    monkeypatch.delenv("OSR_ACCEPT_SOURCE")
    assert set(weights.checkpoint_metadata(path)["source"]) == {"train", *TINY}
    call_by_name("train", set_alpha_otherwise)
    out = capsys.readouterr().out
    assert out.startswith(loaded) and "(train changed since" in out


def test_a_retraining_trains_anew_what_has_changed_and_loads_the_rest(
    repository, capsys, monkeypatch
):
    monkeypatch.setenv("OSR_RETRAIN", "1")
    model = call_by_name("train")
    capsys.readouterr()
    assert torch.equal(output(call_by_name("train")), output(model))
    assert capsys.readouterr().out == f"loaded {model.checkpoint}\n"
    call_by_name("train", set_alpha_otherwise)
    assert "training, seed" in capsys.readouterr().out


# --- weights of one's own -------------------------------------------------------------------------

LIVES = {  # environment -> where the weights belong, seen from the repository
    "full": ({}, ".run/checkpoints"),
    "full, elsewhere": ({"OSR_OUTPUT": "out"}, "out/checkpoints"),
    "demo": ({"OSR_PROFILE": "demo"}, ".demo/checkpoints"),
    "demo, elsewhere": ({"OSR_PROFILE": "demo", "OSR_OUTPUT": "out"}, "out/checkpoints"),
    "retraining": ({"OSR_RETRAIN": "1"}, ".run/checkpoints"),
    "retraining, elsewhere": ({"OSR_RETRAIN": "1", "OSR_OUTPUT": "out"}, "out/checkpoints"),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("name", ["multitask_autoencoder", "an_idea"])
def test_a_configuration_of_ones_own_never_lands_among_the_shipped(
    repository, monkeypatch, capsys, life, name
):
    environment, folder = LIVES[life]
    stem = ship()
    shelf = repository / "data/checkpoints"
    content = {path.name: path.read_bytes() for path in shelf.iterdir()}
    capsys.readouterr()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    own = train_autoencoder(name=name, epochs=7)
    assert [path.name for path in (repository / folder).iterdir()] == [f"{own}.safetensors"]
    assert {path.name: path.read_bytes() for path in shelf.iterdir()} == content
    assert files(repository) == sorted([*content, f"{own}.safetensors"])
    assert train_autoencoder(name=name, epochs=7) == own
    trained, loaded = capsys.readouterr().out.splitlines()
    assert trained.startswith(f"{name}: training, seed 0 (") and loaded == f"loaded {own}"
    # The shipped model is what load_model gives, but where the run uses its own weights alone.
    if life.startswith("full"):
        assert shipped.load_model("multitask_autoencoder").checkpoint == stem
        assert set(shipped.list_models()) == {"multitask_autoencoder"}
    elif name == "multitask_autoencoder":
        assert shipped.load_model(name).checkpoint == own
    else:
        with pytest.raises(FileNotFoundError, match="train it first"):
            shipped.load_model("multitask_autoencoder")
        assert shipped.find_weights(name).stem == own


@pytest.mark.parametrize(
    "config, why",
    [
        ({"epochs": 7}, "(shipped weights have epochs = 3)"),
        ({"epochs": 3, "lr": 1}, "(shipped weights have lr = None)"),
        ({"epochs": 3, "seed": 4}, "(no weights of that name and seed ship)"),
    ],
)
def test_a_training_says_why_no_shipped_weights_are_used(repository, capsys, config, why):
    ship(epochs=3)
    ship(epochs=9, lr=2, widths=[1])  # differs more
    capsys.readouterr()
    train_autoencoder(**config)
    assert why in capsys.readouterr().out


@pytest.mark.parametrize("environment", [{"OSR_PROFILE": "demo"}, {"OSR_RETRAIN": "1"}])
def test_a_demo_and_a_retraining_train_though_the_weights_ship(
    repository, monkeypatch, capsys, environment
):
    stem = ship()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    capsys.readouterr()
    assert train_autoencoder() == stem
    assert "training, seed 0 (a demo's or a retraining's first)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config, message",
    [
        ({"seed": 0, "lr": np.float32(0.1)}, "config is not JSON-able .*give plain numbers"),
        ({"seed": "a"}, "the seed is 'a': give a whole number"),
        ({"seed": None}, "the seed is None"),
        ({"seed": True}, "the seed is True"),
    ],
)
def test_a_configuration_that_cannot_be_stored_is_refused_before_any_work(config, message):
    with pytest.raises(ValueError, match=message):
        weights.fit_or_load("tiny", config, pytest.fail, build=Tiny, data={})
