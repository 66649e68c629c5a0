"""The reports: of the repository, and of the folder of a run that could not compute everything."""

import json
import shutil

import pytest

import build
from helpers import files, store_rows
from osr.paths import ROOT
from osr.results import TOLERANCE, read_file

TABLES = "report/RESULTS.md"
NOTEBOOK = "03_alpha_calibration"


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


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory):
    """Build the report of a run that had no photographs and drew a single figure.

    Return its folder, and the figures and tables of the report, as typst knows them.
    """
    folder = tmp_path_factory.mktemp("run")
    results = read_file(ROOT / f"report/results/{NOTEBOOK}.json")
    for row in results["rows"]:
        row["value"] += TOLERANCE / 10 * (row["metric"] == "accuracy")  # another processor's
        if "cifar10" in row["ood"] and row["seed"] == 0:
            row["stored"] = True
    store_rows(folder, results.pop("rows"), NOTEBOOK, **results)
    (folder / "figures").mkdir()
    shutil.copyfile(ROOT / "figures/03_alphas.pdf", folder / "figures/03_alphas.pdf")
    found = []

    def query(source, selector, field, **options):
        found.extend(json.loads(ask(source, "figure", **options)))
        return ask(source, selector, field=field, **options)

    ask = build.typst.query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.typst, "query", query)
        assert build.main(folder) == folder / "report/report.pdf"
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


def test_the_report_of_a_run_marks_numbers_and_figures_that_it_has_not_made(half_a_run):
    folder, found = half_a_run
    assert (folder / "report/report.pdf").read_bytes().startswith(b"%PDF")
    drawn, tables = {}, []
    for figure in found:
        if figure["kind"] == "image":
            drawn[figure["body"]["source"]] = "not drawn in this run" not in text(figure["caption"])
        else:
            tables.append([text(cell) for cell in figure["body"]["children"]])
    assert [name for name in drawn if drawn[name]] == ["figures/03_alphas.pdf"] and len(drawn) > 10
    (headline,) = (table for table in tables if "reference" in table)
    ours = next(i for i, cell in enumerate(headline) if cell.startswith("ours"))
    assert ["°" in cell for cell in headline[ours + 1 : ours + 4]] == [False, True, True]
    assert not any("°" in cell for cell in headline[:ours])
    assert files(folder / "report") == [f"{NOTEBOOK}.json", "RESULTS.md", "report.pdf"]


@pytest.fixture
def tables_only(monkeypatch):
    """Leave typst out."""
    monkeypatch.setattr(build, "compile_report", lambda folder: folder)


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
