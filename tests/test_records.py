"""What is recorded of each data set."""

import re

import pytest
import torchvision

from osr import paths, records, sources
from osr.records import SETS

README = (paths.ROOT / "data/README.md").read_text(encoding="utf-8")
DOWNLOADED = [name for name, record in SETS.items() if record.address]


@pytest.mark.parametrize("name", SETS)
def test_a_record_says_what_a_set_is_and_where_it_comes_from(name):
    record = SETS[name]
    assert record.title and record.licence and record.classes >= 1
    assert re.fullmatch("#[0-9A-F]{6}", record.colour)
    assert set(record.cloned) <= set(record.wanted) <= {"train", "test"}
    if record.cloned:  # a licence that allows it to be passed on
        assert record.licence.startswith(("CC BY", "MIT")) and not record.demo
    own_function = callable(getattr(sources, record.source, None))
    assert own_function or issubclass(
        getattr(torchvision.datasets, record.source), torchvision.datasets.VisionDataset
    )
    assert not record.demo or callable(getattr(sources, record.demo))
    if record.address:
        assert re.match("https?://[^/]+", record.address)
        archive = own_function and record.wanted  # nothing else checks what has come
        assert bool(record.md5) == bool(archive)
        assert not record.md5 or re.fullmatch("[0-9a-f]{32}", record.md5)
    else:
        assert own_function and not record.md5 and not record.demo and not record.wanted


def test_the_corruptions_are_fifteen_and_each_is_a_test_set():
    assert len(set(records.CORRUPTIONS)) == 15
    for name in records.CORRUPTIONS:
        assert SETS[f"mnist_c/{name}"].wanted == ("test",)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_table_of_the_data_names_every_set_with_its_terms(name):
    name = re.sub("/.*", r"/\\<corruption\\>", name)
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
    record = SETS[name if name in SETS else "mnist_c/fog"]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == record.licence
    assert len(cells) == 4 and all(cells)


def test_the_readme_names_the_sets_that_need_no_download():
    for name in SETS.keys() - set(DOWNLOADED):
        assert f"`{name}`" in README


def test_the_corruptions_are_one_where_many_names_are_shown():
    names = ["svhn", "mnist_c/fog", "mnist", "mnist_c/zigzag", "svhn"]
    assert records.folded(name for name in names) == ["svhn", "mnist_c", "mnist"]
