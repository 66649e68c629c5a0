"""Functions as text: has what a training or a sweep calls changed since?"""

import ast
import dis
import inspect
import sys
import textwrap
import tokenize
import types
from functools import cached_property, partial
from io import StringIO

from osr.paths import digest

LIBRARIES = {
    *sys.stdlib_module_names, "osr", "osr_utils", "torch", "torchvision", "numpy", "scipy",
    "sklearn", "pytorch_ood", "pandas", "matplotlib", "seaborn", "PIL", "joblib", "tqdm",
}  # fmt: skip
MOST = 100  # entries at most of a container that is searched for functions
SEARCHED = cached_property, types.SimpleNamespace  # as objects are that can be called
LOADS = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"  # the others: in a class's body
_remembered = {}  # code -> text
_read = {}  # id of a code -> the code, and its text: finding a source takes a tenth of a second


def source_digests(*start):
    """Return {name: five digits of a digest} of functions, and of the functions that they call.

    It follows what stands in your notebook or your own modules: classes, what an object or a
    container holds and what an argument is by default included; not the rooms of `osr`, nor
    libraries. Comments, docstrings and layout do not count, nor do the values of constants; of a
    lambda the statement around it counts.
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
        elif isinstance(thing, dict | list | tuple | set | frozenset):
            if len(thing) <= MOST:
                todo += [*thing, *thing.values()] if isinstance(thing, dict) else thing
        elif isinstance(thing, property):
            todo += [thing.fget, thing.fset]
        elif isinstance(thing, types.MethodType | staticmethod | classmethod):
            todo.append(thing.__func__)
            owner = getattr(thing, "__self__", None)
            if set(dir(owner)) & set(getattr(_code(thing.__func__), "co_names", ())):
                todo.append(owner)
        elif isinstance(thing, type | types.FunctionType):
            if _of_a_library(thing.__module__):
                continue
            if isinstance(thing, type):
                todo += [*vars(thing).values(), *thing.__bases__]
            else:
                found.setdefault(thing.__qualname__, []).append(thing)
                todo += _named(thing)
        elif not isinstance(thing, types.ModuleType):  # an object, also of functools.cache
            own = not _of_a_library(type(thing).__module__)
            if own or callable(thing) or isinstance(thing, SEARCHED):
                todo += [type(thing), *getattr(thing, "__dict__", {}).values()]
    return dict(sorted(found.items()))


def _of_a_library(module):
    package = (module or "builtins").split(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = package != "__main__" and ("site-packages" in file or "dist-packages" in file)
    return installed or package in LIBRARIES


def _named(function):
    """Return what a function names: globals, what is in modules, its closure, its defaults."""
    codes = _codes(function.__code__)
    steps = [step for code in codes for step in dis.get_instructions(code)]
    names = {step.argval for step in steps if step.opname in LOADS}
    things = [function.__globals__[name] for name in names & function.__globals__.keys()]
    attributes = {name for code in codes for name in code.co_names}
    for module in [thing for thing in things if isinstance(thing, types.ModuleType)]:
        if not _of_a_library(module.__name__):
            things += [vars(module)[name] for name in attributes & vars(module).keys()]
    things += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            things.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    return things


def _code(function):
    """Return the code of a function as it was written, inside the decorators of libraries."""
    inner = inspect.unwrap(function, stop=_is_own)
    return getattr(inner, "__code__", None) or getattr(function, "__code__", None)


def _is_own(function):
    return not _of_a_library(getattr(function, "__globals__", {}).get("__name__"))


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
        lines, start = inspect.getsourcelines(code)
        ends = [line for part in _codes(code) for *_, line in part.co_lines() if line]
        if max(ends) >= start + len(lines):  # a lambda amid a statement goes on
            lines = inspect.findsource(code)[0][start - 1 : max(ends)]
    except (OSError, TypeError):  # typed at a prompt
        return ""
    text = textwrap.dedent("".join(lines))
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
    try:  # in brackets, where no line counts as indented
        for token in tokenize.generate_tokens(StringIO(f"({text}").readline):
            words.append(token.string if token.type != tokenize.COMMENT else "")
    except (tokenize.TokenError, SyntaxError):  # it ends before the statement does
        pass
    return "".join("".join(words[1:]).split())
