"""The README: short, its links lead somewhere, its examples run."""

import re
from pathlib import Path

import pytest

from osr.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def anchors(path):
    """Return the anchors of a file's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_newcomer_finishes_it():
    assert len(TEXT.split()) <= 1500


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) > 20
    for link in links:
        file, _, anchor = link.partition("#")
        path = ROOT / file if file else ROOT / "README.md"
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.runs
def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("OSR_DATA", "OSR_PROFILE", "OSR_RETRAIN"):
        monkeypatch.delenv(name, raising=False)
    names = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        head = re.match(r"# (\w+/\w+\.py)\n", block)
        if head:  # a file of the reader's
            Path(head[1]).parent.mkdir()
            Path(head[1]).write_text(block, encoding="utf-8")
        else:
            exec(block, names)
    said = capsys.readouterr().out
    shares = dict(re.findall(r"^(mnist|fashionmnist|kmnist) tensor\(([\d.]+)\)$", said, re.M))
    assert float(shares["mnist"]) < 0.05 < 0.9 < float(shares["fashionmnist"])
    assert "'submission': 'ada'" in said
