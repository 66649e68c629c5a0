"""Functions as text: what counts as a change, and what does not."""

import pickle
import subprocess
import sys
from functools import cache, partial

import cloudpickle
import pytest
import torch

from helpers import run_cell
from osr import functions


def source_of(text, start="train", **names):
    return functions.source_digests(run_cell(text, **names)[start])


TRAIN = """
import torch
from functools import cache, partial

RATE = 0.1
CHOICES = {
    "short": lambda x: x[:10],
    "long": lambda x: x,
}


def loss(x):
    return x.square().mean()


@cache
def weight(k):
    return 1 / k


class Base:
    def start(self):
        return 1


class Network(Base):
    WIDTH = 8

    def __init__(self):
        self.width = self.WIDTH

    @property
    def area(self):
        return self.width**2

    @staticmethod
    def twice(x):
        return 2 * x

    @classmethod
    def build(cls):
        return cls()


@torch.no_grad()
def shrink(x):
    return x / 2


def raise_it(x, power):
    return x**power


def at_power(power, how):
    def raised(x):
        return how(x, power)

    return raised


cube = at_power(3, raise_it)


def scaled(x, by):
    return x * by


def train(model):
    network, kinds = Network(), {"a", "b", "c", "d"}
    for choice in CHOICES.values():
        part = partial(scaled, by=RATE)
        total = loss(part(choice(shrink(cube(model))))) * weight(3)
    return [total for _ in range(3) if network and "a" in kinds]
"""


def changed(old, new):
    assert TRAIN.count(old) == 1, old
    before, after = source_of(TRAIN), source_of(TRAIN.replace(old, new))
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_what_a_function_calls_is_found_and_no_library():
    assert set(source_of(TRAIN)) == {
        "<lambda>", "Base.start", "Network.__init__", "Network.area", "Network.build",
        "Network.twice", "at_power.<locals>.raised", "loss", "raise_it", "scaled", "shrink",
        "train", "weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    "old, new, name",
    [
        ("range(3)", "range(4)", "train"),
        ("x.square().mean()", "x.abs().mean()", "loss"),
        ("1 / k", "2 / k", "weight"),
        ("x / 2", "x / 3", "shrink"),
        ("return x * by", "return x + by", "scaled"),
        ("x[:10]", "x[:20]", "<lambda>"),
        ("lambda x: x,", "lambda x: -x,", "<lambda>"),
        ("return how(x, power)", "return how(power, x)", "at_power.<locals>.raised"),
        ("return x**power", "return power**x", "raise_it"),  # named in a closure alone
        ("self.width = self.WIDTH", "self.width = 2 * self.WIDTH", "Network.__init__"),
        ("self.width**2", "self.width**3", "Network.area"),
        ("return 2 * x", "return 3 * x", "Network.twice"),
        ("return cls()", "return cls", "Network.build"),
        ("        return 1\n", "        return 2\n", "Base.start"),
    ],
)
def test_a_change_is_seen_wherever_it_stands(old, new, name):
    assert changed(old, new) == {name}


@pytest.mark.parametrize(
    "old, new",
    [
        ("    return x.square().mean()", "    # mean square\n    return x.square().mean()  # so"),
        ("    return x.square().mean()", '    """Return it."""\n    return x.square().mean()'),
        ("def loss(x):\n", "def loss(\n    x,\n):\n\n"),
        ("x.square().mean()", "( x . square( ).mean() )"),
        ("class Network(Base):\n", 'class Network(Base):\n    """It has a width."""\n\n'),
        ('"short": lambda x: x[:10],', '"short":  lambda x:x[ :10 ],  # ten'),
        ('"short": lambda', "'short': lambda"),
        ('"a" in kinds', "'a' in kinds"),
        ("RATE = 0.1", "RATE = 0.2"),  # a constant belongs into the configuration
        ("WIDTH = 8", "WIDTH = 9"),
        ("import torch\n", "import torch\n\n\ndef other():\n    pass\n"),
    ],
)
def test_comments_docstrings_layout_constants_and_other_functions_do_not_count(old, new):
    assert changed(old, new) == set()


def test_a_function_without_a_body_of_its_own_may_have_a_docstring():
    assert source_of("def train(model):\n    pass") == source_of('def train(model):\n    "Do."')


def test_several_starts_partials_methods_and_containers_are_followed():
    names = run_cell(TRAIN)
    loss, build = names["loss"], names["Network"]
    assert set(functions.source_digests(loss, names["shrink"])) == {"loss", "shrink"}
    assert set(functions.source_digests(partial(names["scaled"], by=loss))) == {"loss", "scaled"}
    assert set(functions.source_digests([{"a": (loss,)}])) == {"loss"}
    assert set(functions.source_digests(build().start)) == {"Base.start"}
    assert functions.source_digests(torch.relu, partial(max, 1), cache, len, 3, None) == {}
    assert functions.source_digests([loss] * functions.MOST) and not functions.source_digests(
        [loss] * 101
    )


LOSS = """
from functools import cached_property, lru_cache, partial, wraps
from types import SimpleNamespace
import torch

def f(x, y=0):
    return x - 1
"""
WAYS = {  # how a loss that is called f comes to the training
    "a partial of a lambda": "loss = partial(lambda x, y: f(x), y=1)\ndef train(m): loss(1)",
    "a dict's value": "losses = {'a': {'b': [f]}}\ndef train(m): losses['a']['b'][0](1)",
    "a dict's key": "losses = {f: 0.5}\ndef train(m): [loss(1) for loss in losses]",
    "a set": "losses = frozenset({f})\ndef train(m): [loss(1) for loss in losses]",
    "a default": "def train(m, loss=f): loss(1)",
    "a default by name": "def train(m, *, loss=f): loss(1)",
    "a lambda's default": "train = lambda m, losses={'f': f}: losses['f'](1)",
    "a closure": "def of(loss):\n    def train(m): loss(1)\n    return train\ntrain = of(f)",
    "a class in a function": "def train(m):\n    class A:\n        loss = f\n    A.loss(1)",
    "an object's class": "class L(torch.nn.Module):\n    def forward(self, x): return f(x)\n"
    "loss = L()\ndef train(m): loss(1)",
    "what an object holds": "class T:\n    def __init__(self, loss): self.loss = loss\n"
    "    def fit(self, m): self.loss(1)\nt = T(f)\ndef train(m): t.fit(m)",
    "a method's object": "class T:\n    def fit(self, m): self.loss(1)\n"
    "    def loss(self, x): f(x)\ntrain = T().fit",
    "an object that is called": "class T:\n    def __call__(self, m): f(1)\ntrain = T()",
    "a library's object": "class L(torch.nn.Module):\n    def forward(self, x): return f(x)\n"
    "parts = torch.nn.Sequential(L())\ndef train(m): parts(1)",
    "a namespace": "names = SimpleNamespace(loss=f)\ndef train(m): names.loss(1)",
    "a cached property": "class T:\n    @cached_property\n    def p(self): return f(1)\n"
    "def train(m): T().p",
    "a cache": "loss = lru_cache(3)(f)\ndef train(m): loss(1)",
}


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_a_loss_is_seen_however_it_is_given(text):
    text = LOSS + text
    before, after = source_of(text), source_of(text.replace("x - 1", "x + 1"))
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"f"}


def test_a_function_in_a_module_of_ones_own_is_found_and_no_other_of_it(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("def f(x):\n    return x\n\ndef other():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = source_of("import my_losses, numpy\ndef train(m): numpy.sum(my_losses.f(1))")
    assert set(found) == {"f", "train"}


def test_the_body_of_a_decorator_of_ones_own_counts_and_so_does_what_it_decorates():
    text = """
        from functools import wraps
        def doubled(function):
            @wraps(function)
            def inside(x):
                return 2 * function(x)
            return inside
        @doubled
        def train(m):
            return m
    """
    for old, new in (("2 *", "3 *"), ("return m", "return -m")):
        assert (
            text.count(old) == 1
            and source_of(text)["train"] != source_of(text.replace(old, new))["train"]
        )


@pytest.mark.parametrize("lines", ["x\n - 1", "(x\n  - 1)", "max(\n        x - 1,\n  2)"])
def test_a_lambda_counts_to_its_last_line(lines):
    text = f"loss = (\n    lambda x:\n        {lines}\n)\ndef train(m): loss(1)"
    before, after = source_of(text), source_of(text.replace("- 1", "+ 1"))
    assert before["<lambda>"] != after["<lambda>"] and before["train"] == after["train"]


def test_an_attribute_that_is_called_like_a_function_is_not_that_function():
    text = "def fit(model):\n    return model.train()\n\ndef train(model):\n    return model"
    assert set(source_of(text, "fit")) == {"fit"}


def test_functions_that_call_each_other_are_read_once():
    text = "def train(n):\n    return other(n)\n\ndef other(n):\n    return n and train(n - 1)"
    assert set(source_of(text)) == {"train", "other"}


def test_two_functions_of_one_name_count_both():
    text = """
        class One:
            pass
        class Two:
            pass
        One.f, Two.f = (lambda self: 1), (lambda self: 2)
        def train(model):
            return One().f() + Two().f()
    """
    assert source_of(text) != source_of(text.replace("self: 2", "self: 3"))
    assert source_of(text) != source_of(text.replace("self: 1", "self: 3"))


def test_a_closure_that_is_not_filled_yet_does_no_harm():
    text = """
        def outer():
            def train(model):
                return later
            found.append(sources(train))
            later = 1
        outer()
    """
    found = []
    run_cell(text, found=found, sources=functions.source_digests)
    assert list(found[0]) == ["outer.<locals>.train"]


def test_a_function_that_was_typed_at_a_prompt_has_no_source_and_is_named():
    names = {"__name__": "a_notebook"}
    exec("def train(model):\n    return helper(model)\n\ndef helper(x):\n    return x", names)
    assert set(functions.source_digests(names["train"])) == {"train", "helper"}


def test_the_texts_are_those_of_every_function_once_wherever_it_stands():
    names = run_cell(TRAIN)
    more = run_cell(
        "def more(x):\n    return loss(x) + helper(x)",
        loss=names["loss"],
        helper=source_of,  # of this file
    )
    found = functions.texts(more["more"])
    assert {code.co_name for code in found} == {"more", "loss", "source_of", "run_cell"}
    assert found[names["loss"].__code__] == "def loss(x):\n    return x.square().mean()"
    wrapped = functions.texts(names["shrink"])  # not the code of torch's decorator
    assert {code.co_name for code in wrapped} == {"shrink"}


SCRIPT = """
import pickle, sys
from osr import functions

function, known = pickle.load(sys.stdin.buffer)
blind = functions.source_digests(function)
functions.remember(known)
pickle.dump([blind, functions.source_digests(function)], sys.stdout.buffer)
"""


def test_another_process_with_other_orders_of_sets_reads_the_same():
    """Functions are sent as joblib and Dask do; the seed of hashes orders every set there."""
    text = TRAIN  # without what takes long to import, or cannot be sent
    for part in ("import torch\n", "@torch.no_grad()\n", "@cache\n"):
        text = text.replace(part, "")
    names = run_cell(text)
    here = functions.source_digests(names["train"])
    sent = cloudpickle.dumps([names["train"], functions.texts(names["train"])])
    for seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", SCRIPT], input=sent, stdout=subprocess.PIPE, check=True,
            env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        blind, there = pickle.loads(told.stdout)
        assert there == here and list(there) == list(here)
        assert set(blind) == set(here) and not set(blind.values()) & set(here.values())
