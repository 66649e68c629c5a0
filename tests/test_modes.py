"""Eval mode by the modules' own `eval` and `train`, and every submodule's mode back."""

import pytest
import torch
from torch import nn

from helpers import one_batch, other_defaults
from osr.contract import eval_model
from osr.modes import evaluation_mode, plain_defaults


class Odd(nn.Module):
    """A module with a dropout and a batch normalisation."""

    def __init__(self):
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.9), nn.BatchNorm1d(11)

    def forward(self, x):
        return self.norm(self.dropout(x))


class AlwaysDropping(Odd):
    """Monte Carlo dropout: it goes on in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        self.dropout.train()
        return self


class Prepared(Odd):
    """Prepare a table in `eval`, without returning itself; forget it in `train`."""

    table, prepared = None, 0

    def eval(self):
        super().eval()
        self.table = [3, 1, 4]
        self.prepared += 1

    def train(self, mode=True):
        self.table = None
        return super().train(mode)


class TrainingLoop(Odd):
    """Have a loop that is called `train`, as hand-ins do."""

    def train(self, loader, epochs=3):
        raise AssertionError("trained")


class EvaluationLoop(Odd):
    def eval(self, loader):
        raise AssertionError("evaluated")


class Broken(Odd):
    def eval(self):
        super().eval()
        raise RuntimeError("no weights")


def modes(model):
    return [module.training for module in model.modules()]


def mixed(model):
    """Give the parts modes that `train` alone would not bring back."""
    model.training, model.dropout.training, model.norm.training = True, True, False
    return model


def test_what_is_no_module_is_left_alone():
    with evaluation_mode(len):
        pass


def test_dropout_that_goes_on_in_eval_mode_goes_on():
    model = mixed(AlwaysDropping())
    with evaluation_mode(model):
        assert modes(model) == [False, True, False]
    assert modes(model) == [True, True, False]
    model.eval()
    with evaluation_mode(model):
        assert modes(model) == [False, True, False]
    assert modes(model) == [False, True, False]


def test_what_eval_prepares_is_there_and_train_undoes_it_where_it_trained():
    model = mixed(Prepared())
    with evaluation_mode(model):
        assert model.table == [3, 1, 4] and modes(model) == [False] * 3
    assert model.table is None and modes(model) == [True, True, False]
    model.eval()
    with evaluation_mode(model):
        assert model.table == [3, 1, 4]
    assert model.table == [3, 1, 4] and modes(model) == [False] * 3
    assert model.prepared == 3  # the way back to eval mode asks for nothing


def test_what_eval_prepares_is_undone_where_it_leaves_the_flag():
    model = mixed(Prepared())
    model.eval = lambda: setattr(model, "table", "full")
    with evaluation_mode(model):
        assert model.table == "full" and model.training
    assert model.table is None and modes(model) == [True, True, False]


def test_a_part_gets_its_mode_back_by_its_own_methods():
    part = mixed(Prepared())
    whole = nn.Sequential(nn.Sequential(part), nn.Dropout()).train()
    part.eval()
    with evaluation_mode(whole):
        pass
    assert part.table == [3, 1, 4] and modes(whole) == [True, True, False, False, False, True]


@pytest.mark.parametrize("kind", [TrainingLoop, EvaluationLoop])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.Sequential(model)])
def test_loops_that_are_called_train_and_eval_are_not_run(kind, wrap):
    model = wrap(mixed(kind()))
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_a_training_loop_whose_arguments_have_defaults_is_not_run():
    class Learner(Odd):
        trained = 0

        def train(self, epochs=5):
            self.trained += epochs

    model = mixed(Learner())
    with evaluation_mode(model):
        assert not any(modes(model))
    assert model.trained == 0 and modes(model) == [True, True, False]


@pytest.mark.parametrize("parameters", ["mode", "on=True", "*args, **kwargs"])
def test_a_mode_may_have_another_name(parameters):
    names = {"nn": nn, "Odd": Odd}
    call = parameters.replace("=True", "")
    exec(
        f"class Other(Odd):\n    def train(self, {parameters}):\n"
        f"        super().train({call})\n        self.dropout.training = True\n        return self",
        names,
    )
    model = names["Other"]()
    with evaluation_mode(model):
        assert modes(model) == [False, True, False]
    assert modes(model) == [True] * 3


@pytest.mark.parametrize("model", [Broken, AlwaysDropping])
def test_the_modes_come_back_after_an_error_in_eval_or_train(model):
    model = mixed(model())
    if isinstance(model, AlwaysDropping):
        model.dropout.train = None  # so that `train` fails, too
    with pytest.raises((RuntimeError, TypeError)), evaluation_mode(model):
        raise AssertionError("this is not reached")
    assert modes(model) == [True, True, False]


def test_a_module_of_torch_export_is_judged_as_it_is():
    images = torch.rand(2, 11)
    exported = torch.export.export(Odd().eval(), (images,)).module()
    with pytest.raises(NotImplementedError):
        exported.eval()
    whole = nn.Sequential(exported, nn.Dropout(0.9))
    labels = exported(images).argmax(1)
    for model in (exported, whole):
        before = modes(model)
        assert eval_model(model, one_batch(labels, images), "cpu")[0] == 1
        assert modes(model) == before


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated")
@pytest.mark.parametrize("change", [torch.jit.script, lambda m: torch.compile(m, backend="eager")])
def test_modules_that_are_scripted_or_compiled_change_their_modes(change):
    torch._dynamo.reset()
    model = change(Odd().train())
    images = torch.rand(4, 11)
    with evaluation_mode(model), torch.no_grad():
        torch.testing.assert_close(model(images), images, rtol=1e-4, atol=1e-4)
    assert all(modes(model))


def made():
    tensor = torch.ones(2)
    return tensor.device.type, tensor.dtype


def test_torchs_defaults_are_set_aside_and_come_back():
    with other_defaults():
        with plain_defaults():
            assert made() == ("cpu", torch.float32)
        assert made() == ("meta", torch.float64)
        with pytest.raises(KeyError), plain_defaults():
            raise KeyError
        assert made() == ("meta", torch.float64)
        assert plain_defaults()(made)() == ("cpu", torch.float32)
    assert made() == ("cpu", torch.float32)
