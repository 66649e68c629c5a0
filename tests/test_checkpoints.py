"""Files of weights: what they hold comes back as it was, or not at all."""

import json
import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from torch import nn

from helpers import literal, state_bytes
from osr import checkpoints, paths

META = {"name": "tiny", "config": {"seed": 0, "lr": 0.1}, "data": {"images": "0123456789ab"}}
META |= {"trained": {"seconds": 1.5, "device": "cpu", "torch": "2"}, "source": {"train": "01234"}}


@pytest.fixture
def path(tmp_path):
    """Return a file of the weights of `network`, as they are stored."""
    model = network()
    model.log = {"history": torch.tensor([0.75, 0.5], dtype=torch.float64)}
    checkpoints.save_weights(model, tmp_path / "tiny-01.safetensors", META)
    return tmp_path / "tiny-01.safetensors"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def load(path):
    return checkpoints.load_weights(network(), path)


def header(path):
    """Return a file's header, and the bytes of its tensors."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def rewrite(path, found, content):
    """Write a file from a header and the bytes of its tensors."""
    text = json.dumps(found).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def rewrite_meta(path, change):
    """Change what a file says of itself, and leave its tensors alone."""
    found, content = header(path)
    meta = json.loads(found["__metadata__"]["meta"])
    change(meta)
    rewrite(path, found | {"__metadata__": {"meta": json.dumps(meta)}}, content)


def test_a_bit_that_flips_anywhere_is_an_error_that_names_the_file(path):
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"{literal(path)} is damaged"):
            load(path)


def test_a_file_that_is_cut_anywhere_is_an_error_that_names_it(path):
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        for read in (load, checkpoints.checkpoint_metadata):
            with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*delete it"):
                read(path)


def swapped(found):
    found["0.bias"], found["1.bias"] = found["1.bias"], found["0.bias"]


def turned(found):
    found["0.weight"]["shape"] = [1, 9]


def reinterpreted(found):
    found["0.weight"]["dtype"] = "BF16"


@pytest.mark.parametrize("change", [swapped, turned, reinterpreted])
def test_bytes_under_another_name_shape_or_kind_are_refused(path, change):
    found, content = header(path)
    rewrite(path, found, content)
    load(path)  # as it was, laid out otherwise
    change(found)
    rewrite(path, found, content)
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*tensors have changed"):
        load(path)


def test_what_a_file_says_of_itself_cannot_be_edited(path):
    rewrite_meta(path, lambda meta: None)
    assert checkpoints.checkpoint_metadata(path) == META
    rewrite_meta(path, lambda meta: meta["config"].update(seed=1))
    for read in (load, checkpoints.checkpoint_metadata):
        with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*has changed"):
            read(path)


def test_an_older_file_without_sums_and_one_of_another_program_are_read(path, tmp_path):
    sound = state_bytes(load(path))

    def forget(meta):
        del meta["sum"], meta["tensors"]

    rewrite_meta(path, forget)
    assert state_bytes(load(path)) == sound
    assert checkpoints.checkpoint_metadata(path) == META
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_model(network(), other)
    assert state_bytes(load(other)) == state_bytes(network())


@pytest.mark.parametrize("key", ["name", "config", "data", "trained"])
def test_a_file_that_does_not_say_enough_of_itself_is_named(path, key):
    def forget(meta):
        del meta["sum"], meta["tensors"], meta[key]

    assert [found for found, _ in checkpoints.weights_of("tiny", 0, path.parent)] == [path]
    rewrite_meta(path, forget)
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*does not say its {key}"):
        checkpoints.weights_of("tiny", 0, path.parent)


def test_the_weights_of_a_model_are_those_of_its_name_and_seed(tmp_path):
    for name, seed in (("a[1]", 0), ("a[1]", 1), ("a[1]-wide", 0), ("a1", 0)):
        meta = META | {"name": name, "config": {"seed": seed}}
        checkpoints.write_tensors(tmp_path / f"{name}-{seed}.safetensors", {}, meta)
    for name, seed in (("a[1]", 0), ("a[1]", 1), ("a1", 0)):
        ((found, meta),) = checkpoints.weights_of(name, seed, tmp_path)
        assert found.name == f"{name}-{seed}.safetensors" and meta["name"] == name


@pytest.mark.parametrize("read", [load, checkpoints.checkpoint_metadata])
def test_a_file_out_of_reach_is_not_called_damaged(path, monkeypatch, read):
    for owner, name, problem, text in (
        (Path, "open", PermissionError(13, "Permission denied"), "may not read"),
        (checkpoints, "safe_open", MemoryError(), "does not fit into memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Mock(side_effect=problem))
            with pytest.raises(type(problem), match=text) as caught:
                read(path)
        assert str(path) in str(caught.value)
        assert "damaged" not in str(caught.value) and "delete" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=literal(path)):
        read(path)


def test_tensors_of_every_kind_come_back_bit_for_bit_and_files_are_the_same_each_time(tmp_path):
    tensors = {
        "scalar": torch.tensor(362.37),
        "empty": torch.empty(0, 3),
        "bf16": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
        "half": torch.tensor([[65504.0]]).half(),
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "long": torch.arange(3),
    }
    written = []
    for name in ("a", "b"):
        checkpoints.write_tensors(tmp_path / name, tensors, META)
        written.append((tmp_path / name).read_bytes())
        found = checkpoints.read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert bytes(found[key].flatten().view(torch.uint8)) == bytes(
                value.flatten().view(torch.uint8)
            )
    assert written[0] == written[1]


def test_a_weight_beyond_the_range_of_half_precision_stays_as_it_is(path):
    model, log = network(), {"history": torch.zeros(1)}
    model.log = log
    with torch.no_grad():
        model[0].weight[0, 0], model[0].bias[0] = 65504, 70000
    checkpoints.save_weights(model, path, META)
    stored = safetensors.torch.load_file(path)
    assert stored["0.weight"].dtype == torch.float16 and stored["0.bias"].dtype == torch.float32
    assert load(path)[0].weight[0, 0] == 65504
    assert torch.equal(load(path)[0].bias, model[0].bias)


def test_a_model_on_another_device_or_in_other_numbers_is_filled_on_the_cpu(path):
    model = checkpoints.load_weights(network().double(), path)
    assert model[0].weight.dtype == torch.float64 and not model.training
    with torch.device("meta"):
        elsewhere = network()
    with pytest.raises(NotImplementedError, match="meta"), pytest.warns(UserWarning, match="no-op"):
        checkpoints.load_weights(elsewhere, path)  # it has nothing to fill


def test_every_file_that_ships_holds_its_sums():
    files = sorted(paths.shipped_dir().glob("*.safetensors"))
    assert len(files) > 100
    for path in files:
        told = json.loads(header(path)[0]["__metadata__"]["meta"])
        assert {"sum", "tensors"} < told.keys(), path
        checkpoints.read_tensors(path)
