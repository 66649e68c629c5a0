"""What is set aside for a while and comes back: modules' modes, torch's defaults."""

import inspect
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def plain_defaults():
    """Set torch's default device and dtype aside: what is made lies on the CPU, in float32."""
    dtype, cpu = torch.get_default_dtype(), torch.get_default_device().type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if cpu else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def evaluation_mode(model):
    """Put a module into eval mode, and give every submodule its own mode back afterwards.

    Both by the modules' own `eval` and `train`, which may do more than set a flag.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    try:
        _switch(model, False)
        yield
    finally:
        try:
            for module, mode in modes.items():  # parents first
                if module.training != mode or (mode and module is model):
                    _switch(module, mode)
        finally:
            for module, mode in modes.items():
                module.training = mode


def _switch(module, mode):
    """Set a module's mode in its own way; by hand where it has none."""
    try:
        if all(map(_has_modes, module.modules())):
            module.train(True) if mode else module.eval()
            return
    except NotImplementedError:  # of torch.export
        pass
    for part in module.modules():
        part.training = mode


def _has_modes(module):
    """Return whether `train` and `eval` set the mode: in a hand-in they may be its loops."""
    if type(module).train is nn.Module.train and type(module).eval is nn.Module.eval:
        return True
    try:
        inspect.signature(module.eval).bind()
        signature = inspect.signature(module.train)
        (name,) = signature.bind(True).arguments
    except TypeError:
        return False
    parameter = signature.parameters[name]
    return name == "mode" or parameter.kind == parameter.VAR_POSITIONAL or parameter.default is True
