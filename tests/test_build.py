"""The reports: of the repository, and of the folder of a run that could not compute everything."""

import io
import json
import re
import shutil
import statistics
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

import build
from build import REPORTS
from helpers import files, row, store_rows
from osr.paths import ROOT
from osr.results import TOLERANCE, read_file

TABLES = "report/RESULTS.md"
NOTEBOOK = "03_alpha_calibration"
NOTEBOOK_OF_C = "02_autoencoder_topology"


def cells(text, label):
    """Return the cells of the only line of some tables that begins with a label."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def text(content):
    """Return the text of what typst knows as nested elements."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if isinstance(content, dict):
        parts = [content[key] for key in ("text", "body", "child", "children") if key in content]
    return "".join(map(text, parts))


@contextmanager
def watched(selector):
    """Ask typst for some elements of each report that is built; they land in {report: elements}."""
    found, ask = {}, build.typst.query

    def query(source, mark, field, **options):
        found[Path(source).stem] = json.loads(ask(source, selector, **options))
        return ask(source, mark, field=field, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.typst, "query", query)
        yield found


def half_computed(folder, notebook, is_stored):
    """Leave a notebook's results in a folder, as of another processor, without some of the rows."""
    results = read_file(ROOT / f"report/results/{notebook}.json")
    for result in results["rows"]:
        result["value"] += TOLERANCE / 10 * (result["metric"] == "accuracy")
        if is_stored(result):
            result["stored"] = True
    store_rows(folder, results.pop("rows"), notebook, **results)


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory):
    """Build the reports of a run that had no photographs and no 4, and drew a single figure.

    Return its folder, and the figures and tables of each report, as typst knows them.
    """
    folder = tmp_path_factory.mktemp("run")
    half_computed(folder, NOTEBOOK, lambda r: "cifar10" in r["ood"] and r["seed"] == 0)
    half_computed(folder, NOTEBOOK_OF_C, lambda r: r["ood"] == "mnist-4")
    (folder / "figures").mkdir()
    shutil.copyfile(ROOT / "figures/03_alphas.pdf", folder / "figures/03_alphas.pdf")
    with watched("figure") as found:
        assert build.main(folder) == [folder / f"report/{name}.pdf" for name in REPORTS]
    return folder, found


def test_the_tables_of_a_run_mark_what_it_has_not_computed(half_a_run):
    text = (half_a_run[0] / TABLES).read_text("utf-8")
    stored = (ROOT / TABLES).read_text("utf-8")
    for label, marked in (
        ("ten-way accuracy on MNIST-test", False), ("total open-set accuracy", True),
        ("unknowns flagged (750 FashionMNIST + 750 CIFAR-10)", True),
    ):  # fmt: skip
        (_, ours), (_, before) = cells(text, label), cells(stored, label)
        assert ("° %" in ours) == marked and "°" not in before
        if marked:
            assert ours.replace("°", "") == before
    kept, fashion, cifar, kanji, total = cells(
        text, "the original, rebuilt (9,000 digits; keeps what it kept)"
    )
    assert cifar.endswith("°") and total.endswith("°")
    assert not any("°" in cell for cell in (kept, fashion, kanji))
    assert "°" not in "".join(cells(text, "**`osr_detector`**"))  # as another notebook stored it


def pictures_and_tables(figures):
    """Return {picture: whether it was drawn in this run}, and the tables, as lists of texts."""
    drawn, tables = {}, []
    for figure in figures:
        if figure["kind"] == "image":
            drawn[figure["body"]["source"]] = "not drawn in this run" not in text(figure["caption"])
        else:
            tables.append([text(cell) for cell in figure["body"]["children"]])
    return drawn, tables


def test_the_report_of_a_run_marks_numbers_and_figures_that_it_has_not_made(half_a_run):
    folder, found = half_a_run
    drawn, tables = pictures_and_tables(found["report"])
    assert [name for name in drawn if drawn[name]] == ["figures/03_alphas.pdf"] and len(drawn) > 10
    (headline,) = (table for table in tables if "reference" in table)
    ours = next(i for i, cell in enumerate(headline) if cell.startswith("ours"))
    assert ["°" in cell for cell in headline[ours + 1 : ours + 4]] == [False, True, True]
    assert not any("°" in cell for cell in headline[:ours])
    made = [f"{name}.json" for name in (NOTEBOOK, NOTEBOOK_OF_C)] + ["RESULTS.md"]
    assert files(folder / "report") == sorted([*made, "report.pdf", "system_c.pdf"])


def test_the_report_on_system_c_marks_them_too(half_a_run):
    drawn, tables = pictures_and_tables(half_a_run[1]["system_c"])
    assert drawn and not any(drawn.values())
    numbers = [cell for table in tables for cell in table if "±" in cell]
    assert {cell.endswith("°") for cell in numbers} == {True, False}  # of the 4, and of the 8


def test_a_demo_says_in_both_reports_that_it_is_one(tmp_path):
    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    for path in (ROOT / "report/results").glob("*.json"):
        results = read_file(path) | {"profile": "demo"}
        rows = [result for result in results.pop("rows") if result["seed"] == 0]
        store_rows(tmp_path, rows, path.stem, **results)
    with watched("par") as found:
        build.main(tmp_path)
    for name in REPORTS:
        assert any("small models on few images" in text(par["body"]) for par in found[name])
    assert "RESULTS.md" not in files(tmp_path)


def test_a_number_has_a_sample_deviation_and_a_mark_where_it_was_not_computed(tmp_path):
    for name in ("template.typ", "refs.bib"):
        shutil.copyfile(ROOT / "report" / name, tmp_path / name)
    values = {"one": [0.5], "three": [0.1, 0.2, 0.4]}
    rows = [row(method=key, value=v, seed=i) for key in values for i, v in enumerate(values[key])]
    rows.append(row(method="stored", value=0.00275, stored=True))
    store_rows(tmp_path, rows, "03_test").rename(tmp_path / "03_test.json")
    source = tmp_path / "some.typ"

    def numbers(*methods):
        calls = [f'spread(read("03_test"), "{name}", "fashionmnist", "auroc")' for name in methods]
        listed = f"#metadata(({', '.join(calls)},)) <numbers>"
        source.write_text(f'#import "template.typ": *\n{listed}', encoding="utf-8")
        (found,) = json.loads(build.typst.query(str(source), "<numbers>", field="value"))
        return [text(number).replace("\xa0", " ") for number in found]

    three = f"23.33 ± {100 * statistics.stdev(values['three']):.2f}"
    assert numbers("one", "three", "stored") == ["50.00", three, "0.28°"]
    with pytest.raises(Exception, match="no row four / mnist / fashionmnist / auroc"):
        numbers("four")


@pytest.fixture(scope="module")
def built_anew(tmp_path_factory):
    """Build the reports of what is stored; return their folder, and what the build prints."""
    folder, said = tmp_path_factory.mktemp("all"), io.StringIO()
    shutil.copytree(ROOT / "figures", folder / "figures")
    with redirect_stdout(said):
        build.main(folder)
    return folder, said.getvalue()


@pytest.mark.parametrize("name", REPORTS)
def test_a_stored_report_has_a_body_of_three_or_four_pages(name, built_anew):
    assert [line for line in built_anew[1].splitlines() if f"{name}.typ" in line] == []


@pytest.mark.parametrize("name", REPORTS)
def test_a_stored_report_is_that_of_the_stored_results_byte_for_byte(name, built_anew):
    new, stored = (place / f"report/{name}.pdf" for place in (built_anew[0], ROOT))
    assert new.read_bytes() == stored.read_bytes(), "`make report` stores it"


def build_readers_own(folder, monkeypatch, addition, author=""):
    """Build what a reader has made of the report on System C: a text at its end, and a name."""
    for name in ("report", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.png"))
    path = folder / "report/system_c.typ"
    source = path.read_text("utf-8")
    for place, new in (("#references", f"{addition}\n\n#references"),
                       ('#let author = ""', f'#let author = "{author}"')):  # fmt: skip
        assert source.count(place) == 1
        source = source.replace(place, new)
    path.write_text(source, encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", folder)
    with watched("par") as found:
        build.main(folder)
    return {name: [text(par["body"]) for par in found[name]] for name in REPORTS}


def test_a_reader_adds_a_name_and_a_section_and_is_told_that_the_body_is_too_long(
    monkeypatch, tmp_path, capsys
):
    section = "\n\n= A fifth section\n\n#lorem(6000)"
    found = build_readers_own(tmp_path, monkeypatch, section, "Ada Lovelace")
    told = r"^warning: system_c.typ: the body ends on page ([5-9]|\d\d), not on page 3 or 4$"
    assert re.search(told, capsys.readouterr().out, re.MULTILINE)
    assert "Ada Lovelace" in found["system_c"] and "Ada Lovelace" not in found["report"]
    assert b"Ada Lovelace" in (tmp_path / "report/system_c.pdf").read_bytes()  # its properties


def test_a_reader_is_told_what_typst_warns_of(monkeypatch, tmp_path, capsys):
    found = build_readers_own(tmp_path, monkeypatch, '#text(font: "Quill")[Mine]')
    assert "warning: system_c.typ: unknown font family: quill\n" in capsys.readouterr().out
    assert any("Mine" in par for par in found["system_c"])


@pytest.fixture
def tables_only(monkeypatch):
    """Leave typst out."""
    monkeypatch.setattr(build, "compile_reports", lambda folder: folder)


def test_the_stored_tables_are_those_of_the_stored_results(tables_only, tmp_path):
    build.main(tmp_path)  # of a run that has computed nothing
    assert (tmp_path / TABLES).read_text("utf-8") == (ROOT / TABLES).read_text("utf-8")
    assert len(build.TABLES) == (ROOT / TABLES).read_text("utf-8").count("written by `make report`")


def test_a_demo_leaves_no_tables_and_is_refused_by_them(tables_only, tmp_path):
    store_rows(tmp_path, [], "01_data_splits", profile="demo")
    store_rows(tmp_path, [], NOTEBOOK, profile="demo")
    assert build.main(tmp_path) == tmp_path and files(tmp_path / "report") == sorted(
        ["01_data_splits.json", f"{NOTEBOOK}.json"]
    )
    with pytest.raises(ValueError, match=f"{NOTEBOOK}.json holds demo results; run `make run`"):
        build.replication_table()


def test_tables_without_their_place_are_an_error(monkeypatch, tmp_path):
    build.read_all(ROOT)
    text = (ROOT / TABLES).read_text("utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "report").mkdir()
    for broken in (text.replace("<!-- detector_table", "<!-- "), text.replace("<!-- end -->", "")):
        (tmp_path / TABLES).write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="must have one .*_table: written by"):
            build.write_tables(tmp_path)
        assert (tmp_path / TABLES).read_text("utf-8") == broken
