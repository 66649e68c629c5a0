"""Functions as text: has what a training or a sweep calls changed since?"""

import ast
import dis
import inspect
import sys
import textwrap
import tokenize
import types
from functools import partial
from io import StringIO

from osr.paths import digest

LIBRARIES = {
    *sys.stdlib_module_names, "osr", "osr_utils", "torch", "torchvision", "numpy", "scipy",
    "sklearn", "pytorch_ood", "pandas", "matplotlib", "seaborn", "PIL", "joblib", "tqdm",
}  # fmt: skip
MOST = 100  # entries at most of a container that is searched for functions
_remembered = {}  # code -> text
_read = {}  # id of a code -> the code, and its text: finding a source takes a tenth of a second


def source_digests(*start):
    """Return {name: five digits of a digest} of functions, and of the functions that they call.

    Followed is what stands in the notebook, or in a module of your own, classes and
    containers of functions included; not the rooms of `osr`, nor libraries. Comments, docstrings
    and layout do not count, and neither do the values of constants.
    """
    return {
        name: digest(sorted(_plain(_code(function)) for function in functions))[:5]
        for name, functions in _reachable(start).items()
    }


def texts(*start):
    """Return {code: text} of the functions that `source_digests` reads, for other processes.

    What is defined in a notebook or a script is sent there without the place of its source.
    Functions that these define when they are called are included.
    """
    found = [function for functions in _reachable(start).values() for function in functions]
    return {code: _plain(code) for function in found for code in _codes(_code(function))}


def remember(texts):
    """Make the `texts` of another process known here, so that `source_digests` gives the same."""
    _remembered.update(texts)


def _reachable(start):
    """Return {qualified name: functions}, the start included."""
    found, seen, todo = {}, {}, list(start)
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, partial):
            todo += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, dict | list | tuple) and len(thing) <= MOST:
            todo += thing.values() if isinstance(thing, dict) else thing
        elif isinstance(thing, property):
            todo += [thing.fget, thing.fset]
        elif isinstance(thing, types.MethodType | staticmethod | classmethod):
            todo.append(thing.__func__)
        elif isinstance(thing, type | types.FunctionType) and not _of_a_library(thing):
            if isinstance(thing, type):
                todo += [*vars(thing).values(), *thing.__bases__]
            else:
                found.setdefault(thing.__qualname__, []).append(thing)
                todo += _named(thing)
        elif callable(thing) and hasattr(thing, "__wrapped__"):  # such as by functools.cache
            todo.append(thing.__wrapped__)
    return dict(sorted(found.items()))


def _of_a_library(thing):
    return (thing.__module__ or "builtins").split(".")[0] in LIBRARIES


def _named(function):
    """Return what a function's code names: globals of its module, and its closure."""
    names = set()
    for code in _codes(function.__code__):
        steps = dis.get_instructions(code)
        names |= {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
    things = [function.__globals__[name] for name in names & function.__globals__.keys()]
    for cell in function.__closure__ or ():
        try:
            things.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    return things


def _code(function):
    """Return the code of a function as it was written, inside its decorators."""
    return getattr(inspect.unwrap(function), "__code__", function.__code__)


def _codes(code):
    """Return a function's code and that of the functions which it defines."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return [code, *(deeper for part in inner for deeper in _codes(part))]


def _plain(code):
    """Return the source of code without comments, docstrings and layout; "" if it has none."""
    if code in _remembered:
        return _remembered[code]
    if id(code) not in _read:  # codes that differ in a default alone are equal, but not the same
        _read[id(code)] = code, _source(code)
    return _read[id(code)][1]


def _source(code):
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):  # typed at a prompt
        return ""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a lambda amid a statement
        return _without_comments(text).replace("'", '"')
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.unparse(tree).replace("'", '"')  # newer versions quote otherwise


def _without_comments(text):
    """Return a part of a statement without comments and layout."""
    words = []
    try:
        for token in tokenize.generate_tokens(StringIO(text).readline):
            words.append(token.string if token.type != tokenize.COMMENT else "")
    except (tokenize.TokenError, SyntaxError):  # it ends before the statement does
        pass
    return "".join("".join(words).split())
