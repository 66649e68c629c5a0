"""The face: what osr_utils brings, and the order of the rooms behind it."""

import ast
import builtins
import re
from pathlib import Path

import pytest

import osr
import osr_utils
from osr.paths import ROOT

ORDER = re.findall(r"\w+", osr.__doc__.split("\n\n")[1])
ROOMS = sorted((ROOT / "osr").glob("[!_]*.py"))
COMMON = {  # names that a notebook gives to its own things
    "np", "plt", "torch", "nn", "F", "Path", "partial", "train", "test", "model", "device",
    "images", "labels", "seeds", "progress", "profile", "predict", "synthetic", "warp", "energy",
    "msp", "register", "ROOT", "SEED", "DEMO", "rows", "config",
}  # fmt: skip


def star():
    """Return what `from osr_utils import *` brings."""
    names = {}
    exec("from osr_utils import *", names)
    return names.keys() - {"__builtins__"}


def test_a_star_brings_the_contract_and_nothing_else():
    assert star() == set(osr_utils.__all__)
    assert len(osr_utils.__all__) == len(star())


def test_a_star_hides_nothing():
    assert not star() & (set(dir(builtins)) | COMMON | set(ORDER))
    assert not any(name.startswith("_") for name in star())


def test_every_name_of_the_table_is_there():
    lines = [line for line in osr_utils.__doc__.splitlines() if line.startswith("| ")]
    assert len(lines) > 15
    for line in lines[1:]:
        calls = re.findall(r"`(\w+)", line)
        assert calls, line
        for name in calls:
            assert callable(getattr(osr_utils, name)), name


def test_every_public_name_is_that_of_its_room():
    for node in ast.parse(Path(osr_utils.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "osr":
            room = getattr(osr, node.module.removeprefix("osr."))
            for name in node.names:
                assert getattr(osr_utils, name.name) is getattr(room, name.name)


def test_the_face_and_the_rooms_are_small_and_say_what_they_are_for():
    face = Path(osr_utils.__file__)
    for path, most in ((face, 150), *((path, 250) for path in ROOMS)):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= most, path
        assert ast.get_docstring(ast.parse(text)), path


def test_the_order_names_every_room_once():
    assert sorted(ORDER) == [path.stem for path in ROOMS]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_a_room_imports_only_rooms_before_it(path):
    before = ORDER[: ORDER.index(path.stem)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found = [node.module]
            if node.module == "osr":
                found = [f"osr.{name.name}" for name in node.names]
        for module in found:
            assert module != "osr_utils", "a room does not know the face"
            if module.split(".")[0] == "osr":
                assert module.split(".")[1] in before, module


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_every_room_has_its_tests(path):
    text = (ROOT / f"tests/test_{path.stem}.py").read_text(encoding="utf-8")
    assert re.search(rf"from osr import .*\b{path.stem}\b|from osr\.{path.stem} import", text)


def test_nothing_touches_the_search_path():
    """The package is installed, and pytest knows the folders of tests and report."""
    phrase = "sys" + ".path"
    kinds = (".py", ".ipynb", ".md", ".toml", ".yml", ".cfg", ".typ", ".txt")
    places = [*ROOT.glob("[!.]*"), ROOT / ".github"]  # not the environment, nor what runs leave
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    files = [file for file in files if file.suffix in kinds or file.name == "Makefile"]
    files = [file for file in files if ".ipynb_checkpoints" not in file.parts]
    assert len(files) > 50
    assert [str(file) for file in files if phrase in file.read_text(encoding="utf-8")] == []
