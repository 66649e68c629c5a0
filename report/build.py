"""Compile the report and the README's results table: `python report/build.py [demo]`."""

import json
import re
import statistics
import sys
from pathlib import Path

import typst

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import osr_utils  # noqa: E402

BODY_PAGES = range(3, 5)  # the body has 3 or 4 pages; references and appendix come after


def compile_report(folder=""):
    """Compile report.typ with the results and figures of a folder ("" or "/.demo")."""
    source = ROOT / "report/report.typ"
    options = {"root": str(ROOT), "sys_inputs": {"folder": folder}, "ignore_system_fonts": True}
    pdf, warnings = typst.compile_with_warnings(str(source), format="pdf", **options)
    if warnings:
        raise ValueError(f"typst warns: {[warning.message for warning in warnings]}; mend {source}")
    marks = json.loads(typst.query(str(source), "<body-end>", field="value", **options))
    if not folder and marks[0] not in BODY_PAGES:
        raise ValueError(f"the body ends on page {marks[0]}, not 3 or 4; edit {source}")
    target = ROOT / folder.strip("/") / "report/report.pdf"
    with osr_utils.atomic_path(target) as temporary:
        temporary.write_bytes(pdf)
    return target


def results_table():
    """Return the README's results table in Markdown."""
    results = json.loads((ROOT / "report/results/03_alpha_calibration.json").read_text())
    if results["profile"] != "full":
        raise ValueError("report/results holds demo results; run `make run`")
    mix = "fashionmnist+cifar10"
    lines = [
        "| System A, on the original's protocol | original reports | ours, mean ± sd over seeds |",
        "|---|---|---|",
    ]
    for ood, metric, label in (
        ("", "accuracy", "ten-way accuracy on MNIST-test"),
        ("", "osr_mnist", "digits kept and right (MNIST-test)"),
        (mix, "osr_ood", "unknowns flagged (750 FashionMNIST + 750 CIFAR-10)"),
        (mix, "osr_total", "total open-set accuracy"),
        (mix, "binary_accuracy", "known / unknown accuracy"),
    ):
        wanted = ("multitask_autoencoder", ood, metric)
        values = [
            100 * row["value"]
            for row in results["rows"]
            if (row["method"], row["ood"], row["metric"]) == wanted
        ]
        reference = 100 * results["config"]["reference"][metric]
        ours = f"{statistics.fmean(values):.2f} ± {statistics.pstdev(values):.2f}"
        lines.append(f"| {label} | {reference:.2f} % | {ours} % ({len(values)} seeds) |")
    return "\n".join(lines)


def update_readme():
    """Rewrite what stands between the README's two markers."""
    path = ROOT / "README.md"
    begin, end = "<!-- results: written by `make report` -->", "<!-- end of results -->"
    old = path.read_text(encoding="utf-8")
    new, found = re.subn(
        f"(?s){re.escape(begin)}.*{re.escape(end)}", f"{begin}\n{results_table()}\n{end}", old
    )
    if not found:
        raise ValueError(f"{path} has lost its markers {begin} and {end}")
    with osr_utils.atomic_path(path) as temporary:
        temporary.write_text(new, encoding="utf-8")


def main(profile="full"):
    """Build the report; in the full profile, the README's table as well."""
    if profile == "demo":
        return compile_report("/.demo")
    update_readme()
    return compile_report()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
