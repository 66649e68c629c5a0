"""Compile the reports and write the tables of RESULTS.md: `python report/build.py [FOLDER]`.

FOLDER is the output of a run (.run, .demo); without it, the repository. What the run has not made
comes from the repository, and the reports say so.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import typst

from osr.results import read_file
from osr_utils import ROOT, SETS, atomic_path, mean_and_deviation, row_values, select_rows

REPORTS = ("report", "system_c")
BODY_PAGES = (3, 4)  # where the body may end; references and appendix come after
RESULTS = {}  # notebook -> its results file, as `read_all` finds it


def read_all(folder):
    """Read the results files of a folder, and those of the repository that it lacks."""
    RESULTS.clear()
    for place in (ROOT, folder):
        for path in sorted((place / "report/results").glob("*.json")):
            RESULTS[path.stem] = read_file(path)


def compile_reports(folder):
    """Compile the reports with the results and figures of a folder; return the PDFs' paths."""
    demo = RESULTS["01_data_splits"]["profile"] == "demo"
    drawn = {path.name: path for path in (folder / "figures").glob("*.pdf")}
    figures = drawn if demo else {p.name: p for p in (ROOT / "figures").glob("*.pdf")} | drawn
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "figures").mkdir()
        for path in figures.values():
            shutil.copyfile(path, place / "figures" / path.name)
        for path in (*(ROOT / "report").glob("*.typ"), ROOT / "report/refs.bib"):
            shutil.copyfile(path, place / path.name)
        for name, results in RESULTS.items():
            (place / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
        options = {"root": temporary, "ignore_system_fonts": True}
        options["sys_inputs"] = {"stored": " ".join(figures.keys() - drawn.keys())}
        return [compile_report(place / f"{name}.typ", folder, options) for name in REPORTS]


def compile_report(source, folder, options):
    """Compile a report; print what typst warns of, and a body that is too short or too long."""
    pdf, warnings = typst.compile_with_warnings(str(source), format="pdf", **options)
    (pages,) = json.loads(typst.query(str(source), "<body-end>", field="value", **options))
    problems = [warning.message for warning in warnings]
    if pages not in BODY_PAGES:
        problems.append(f"the body ends on page {pages}, not on page 3 or 4")
    for problem in problems:
        print(f"warning: {source.name}: {problem}")
    target = folder / f"report/{source.stem}.pdf"
    with atomic_path(target) as path:
        path.write_bytes(pdf)
    return target


MIX = "fashionmnist+cifar10"


def read_results(name):
    """Return a notebook's results file; its rows must be of the full profile."""
    if RESULTS[name]["profile"] != "full":
        raise ValueError(f"{name}.json holds demo results; run `make run`")
    return RESULTS[name]


def spread(rows, method, ood, metric, known="mnist"):
    """Return the mean ± deviation of a value over the seeds, in per cent."""
    return mean_and_deviation(rows, method=method, id=known, ood=ood, metric=metric)


def held_out_table():
    """Return the table of System C: the digit it was tuned on, and the digit held out."""
    results = read_results("02_autoencoder_topology")
    rows = results["rows"] + read_results("02b_unknown_digits")["rows"]
    reference = results["config"]["reference"]
    lines = [
        "| AUROC in %, ± sd over seeds | 8 (tuned on) | 4 (held out) |",
        "|---|---|---|",
        f"| fully connected autoencoders (trials before this project) | {100 * reference['8']:.0f} "
        f"| {100 * reference['4']:.0f} |",
    ]
    for method, label in (
        ("final:mse", "no labels: mean squared error"),
        ("unlabelled", "**no labels: detail**, the assignment's own system"),
        ("final:conditional|class", "with labels: detail of a conditional network, by class"),
        ("reconstruction", "**with labels: the same and the semantic cost**"),
        ("final:logit", "with labels: largest logit of a classifier"),
        ("best", "**best**: the logits and details of all three networks"),
    ):
        cells = (spread(rows, method, f"mnist-{digit}", "auroc", "mnist-rest") for digit in (8, 4))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replication_table():
    """Return the table of the rebuilt System A against the original."""
    results = read_results("03_alpha_calibration")
    lines = [
        "| | original reports | ours, mean ± sd over seeds |",
        "|---|---|---|",
    ]
    for ood, metric, label in (
        ("", "accuracy", "ten-way accuracy on MNIST-test"),
        ("", "osr_mnist", "digits kept and right (MNIST-test)"),
        (MIX, "osr_ood", "unknowns flagged (750 FashionMNIST + 750 CIFAR-10)"),
        (MIX, "osr_total", "total open-set accuracy"),
        (MIX, "binary_accuracy", "known / unknown accuracy"),
    ):
        method = "multitask_autoencoder"
        ours = spread(results["rows"], method, ood, metric)
        seeds = len(row_values(results["rows"], method=method, ood=ood, metric=metric))
        reference = 100 * results["config"]["reference"][metric]
        lines.append(f"| {label} | {reference:.2f} % | {ours} % ({seeds} seeds) |")
    return "\n".join(lines)


def detector_table():
    """Return the table of all open-set models, on the full test sets."""
    names = ("03_alpha_calibration", "03b_open_set_detector")
    rows = [row for name in names for row in read_results(name)["rows"]]
    columns = (("", "osr_mnist"), ("fashionmnist", "osr_ood"), ("cifar10", "osr_ood"))
    columns += (("kmnist", "osr_ood"), (MIX, "osr_total"))
    lines = [
        "| in %, ± sd where there are several seeds | digits kept and right | FashionMNIST flagged "
        "| CIFAR-10 flagged | KMNIST flagged | total, original's mix |",
        "|---|---|---|---|---|---|",
    ]
    for method, label in (
        ("plain_cnn", "plain classifier, softmax confidence"),
        ("plain_cnn/openmax", "OpenMax on it"),
        ("plain_cnn/distance/max_logit", "its feature distance over its largest logit"),
        ("autoencoder_10", "ten-output autoencoder, confidence"),
        ("multitask_autoencoder", "the original, rebuilt (9,000 digits; keeps what it kept)"),
        ("multitask_autoencoder/keep=0.9975", "the same, keeping as many digits as the others"),
        ("osr_detector_9k", "`osr_detector`, trained on 9,000"),
        ("osr_detector", "**`osr_detector`**"),
    ):
        cells = " | ".join(spread(rows, method, *column) for column in columns)
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def exposure_table():
    """Return the table of System B: six models, beside what the original reports."""
    results = read_results("05_pixmix_outlier_exposure")
    rows, reference = results["rows"], results["config"]["reference"]
    models = [f"{kind}{suffix}" for kind in ("base", "sp", "pixmix") for suffix in ("", "+oe")]
    titles = ("base", "+ OE", "salt and pepper", "+ OE", "PixMix", "+ OE")
    lines = [
        f"| in % (in brackets: what the original reports) | {' | '.join(titles)} |",
        "|---" * (len(models) + 1) + "|",
    ]
    for label, key, suffix, column, decimals in (
        ("accuracy", "accuracy", "", ("", "accuracy", "mnist"), 0),
        ("accuracy on MNIST-C", "mnist_c_accuracy", "", ("", "mnist_c_accuracy", "mnist_c"), 0),
        *(
            (f"AUROC {name}, {title}", f"{ood}/{score}", f"/{score}", (ood, "auroc", "mnist"), 2)
            for ood, name in (("fashionmnist", "FashionMNIST"), ("kmnist", "KMNIST"))
            for score, title in (("msp", "MSP"), ("cross_entropy", "cross entropy"))
        ),
    ):
        cells = []
        for model in models:
            theirs = reference[key].get(model)
            cells.append(spread(rows, model + suffix, *column))
            if theirs is not None:
                cells[-1] += f" ({100 * theirs:.{decimals}f})"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def inversion_table():
    """Return the table of System D: the four experiments beside the original, and the improved."""
    results = read_results("06_network_inversion")
    rows, reference = results["rows"], results["config"]["reference"]
    sets = ("fashionmnist", "cifar10", "svhn")
    lines = [
        "| in the garbage class, % (in brackets: what the original reports) | "
        + " | ".join(f"{SETS[ood].title}, before | after" for ood in sets)
        + " | digits kept and right, after |",
        "|---" * 8 + "|",
    ]
    for method in (*(f"experiment_{k}" for k in range(1, 5)), "improved"):
        cells = []
        for ood in sets:
            theirs = reference.get(method, {}).get(ood, ("", ""))
            for when, value in zip(("before", "after"), theirs, strict=True):
                bracket = f" ({value})" if value else ""
                ours = spread(rows, method, ood, f"garbage_{when}")
                has_none = (method, when) == ("improved", "before")  # it never sees noise alone
                cells.append("" if has_none else ours + bracket)
        cells.append(spread(rows, method, "", "accuracy_after"))
        label = "**improved**" if method == "improved" else method.replace("_", " ")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def one_vs_rest_table():
    """Return the table of System E: MNIST against each set, beside the original."""
    results = read_results("07_one_vs_rest")
    rows = results["rows"]
    reference, there = results["config"]["reference"], {row["ood"] for row in rows}
    sets = [ood for ood in reference if ood in there]
    titles = " | ".join(SETS[ood].title for ood in sets)
    lines = [f"| AUROC, % | {titles} |", "|---" * (len(sets) + 1) + "|"]
    theirs = " | ".join(f"{100 * reference[ood][0]:.2f}" for ood in sets)
    lines.append(f"| UE, as the original reports | {theirs} |")
    for method, label in (
        ("msp", "softmax confidence"),
        ("ue_k", "UE over the ten digits"),
        ("ue_k1", "UE over all eleven outputs"),
        ("garbage_margin", "garbage margin"),
        ("best", "**one score for all**"),
    ):
        values = (spread(rows, method, ood, "auroc") for ood in sets)
        lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines)


def leaderboard_table():
    """Return the best score of every model of the leaderboard, by OSCR."""
    rows = select_rows(read_results("07b_leaderboard")["rows"], ood="*+*")
    unknown, best = rows[0]["ood"], {}  # the rows of the mean over the unknown sets
    for row in sorted(select_rows(rows, metric="oscr"), key=lambda row: -row["value"]):
        best.setdefault(row["method"].split("/")[0], row["method"])
    lines = ["| model | its best score | OSCR | AUROC | AUPR | FPR95 | 11-way accuracy |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    metrics = ("oscr", "auroc", "aupr_out", "fpr95", "osr_total")
    for model, method in best.items():
        cells = " | ".join(spread(rows, method, unknown, metric) for metric in metrics)
        score = method.split("/")[1].replace("_", " ")
        lines.append(f"| `{model}` | {score} | {cells} |")
    return "\n".join(lines)


TABLES = (
    held_out_table, replication_table, detector_table, exposure_table, inversion_table,
    one_vs_rest_table, leaderboard_table,
)  # fmt: skip


def write_tables(folder):
    """Write RESULTS.md, each table between two markers that name its function."""
    path = ROOT / "report/RESULTS.md"
    text = path.read_text(encoding="utf-8")
    for table in TABLES:
        begin, end = f"<!-- {table.__name__}: written by `make report` -->", "<!-- end -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if text.count(begin) != 1 or not found:
            raise ValueError(f"{path} must have one {begin} with an {end} after it")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    with atomic_path(folder / "report/RESULTS.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(folder=ROOT):
    """Build the reports of a folder and, in the full profile, its tables."""
    folder = Path(folder).resolve()
    read_all(folder)
    if RESULTS["01_data_splits"]["profile"] == "full":
        write_tables(folder)
    return compile_reports(folder)


if __name__ == "__main__":
    print(*main(*sys.argv[1:]), sep="\n")
