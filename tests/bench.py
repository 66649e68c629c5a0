"""Measure the project against the plain way of doing the same: `python tests/bench.py`.

Both sides of a ratio run alternately on this machine's processor, after a warm-up, and each
stands at its median. In full where CIFAR-10 is here, else with the demo's images. The numbers go to
report/results/.local/bench.json. BENCH_QUICK=1 runs everything tiny: a check of this script.
"""

import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import osr_utils
import run_notebooks
from osr.training import has_bf16

QUICK = os.environ.get("BENCH_QUICK") == "1"
SIZES = (900, 100) if QUICK else (9000, 1000)  # MNIST images to train on, and to calibrate on
UNKNOWN = 750  # test images of each unknown set
REPEATS = 2 if QUICK else 3
EVALUATED = 1000 if QUICK else 20_000  # images
SCORES = 10_000 if QUICK else 1_000_000  # a side
BATCH = 512  # the reference's
RECONSTRUCTION = 2.0  # weight of the reconstruction error, the reference's
EPOCHS = 120  # the reference's
HEADLINE = 0.9603  # the reference's total accuracy
TRIES = (2, 3) if QUICK else (2, 3, 4, 6, 8)  # epochs
# More and larger steps an epoch: the best of four settings on development unknowns.
FAST = {"batch_size": 64, "lr": 3e-3, "one_cycle": True}
SWEEP = (4, 8) if QUICK else (4, 6, 8, 16)  # latent sizes
MIXED = 600 if QUICK else 9000  # images through PixMix
MIXED_BATCH = 1500  # at 512 the calls take as long as the work
SWEEP_BATCH = 128  # System C's
PERCENTILE = 0.97  # share of the calibration images to keep known
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
CPU = torch.device("cpu")


# --- the plain way, as a course notebook has it ---------------------------------------------------


class PlainImages(Dataset):
    """Decoded digits, augmented one at a time."""

    transform = transforms.Compose(
        [transforms.RandomAffine(15, translate=(0.1, 0.1)), transforms.ToTensor()]
    )

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class PlainAutoencoder(nn.Module):
    """System A's network without the shared module's shortcuts."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 128),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(128, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 2, stride=2), nn.Tanh(),
        )  # fmt: skip
        self.classifier = nn.Linear(128, 10)

    def forward(self, x):
        latent = self.encoder(x)
        return self.classifier(latent), self.decoder(latent)


class SmallAutoencoder(nn.Module):
    """The network of System C's experiments."""

    def __init__(self, latent_dim):
        super().__init__()
        self.encoder = nn.Sequential(
            *stage(nn.Conv2d(1, 16, 3, 2, 1, bias=False), 16),
            *stage(nn.Conv2d(16, 32, 3, 2, 1, bias=False), 32),
            *stage(nn.Conv2d(32, 64, 3, 2, 1, bias=False), 64),
            nn.Flatten(), nn.Linear(1024, latent_dim),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            *stage(nn.Sequential(nn.Linear(latent_dim, 1024), nn.Unflatten(1, (64, 4, 4))), 64),
            *stage(nn.ConvTranspose2d(64, 32, 3, 2, 1), 32),
            *stage(nn.ConvTranspose2d(32, 16, 4, 2, 1), 16),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        return self.decoder(self.encoder(x * 2 - 1))


def stage(layer, channels):
    """Return a layer with batch normalisation and ReLU."""
    return layer, nn.BatchNorm2d(channels), nn.ReLU()


class PlainPixMix(Dataset):
    """PixMix an image at a time with Pillow, as its authors' code has it."""

    rounds, beta, severity = 4, 3.0, 3.0

    def __init__(self, images, pictures):
        self.images, self.pictures = images, pictures

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        digit = Image.fromarray(self.images[index])
        picture = Image.fromarray(self.pictures[np.random.randint(len(self.pictures))])
        mixed = transforms.functional.to_tensor(self.maybe_augment(digit))
        for _ in range(np.random.randint(self.rounds + 1)):
            other = self.augment(digit) if np.random.random() < 0.5 else picture
            mixed = self.mix(mixed, transforms.functional.to_tensor(other)).clip(0, 1)
        return mixed

    def maybe_augment(self, image):
        return self.augment(image) if np.random.random() < 0.5 else image

    def augment(self, image):
        level = np.random.uniform(0.1, self.severity) / 10
        signed = level * np.random.choice([-1, 1])
        shear, shift = 0.3 * signed, int(28 / 3 * signed)
        matrices = [(1, shear, 0, 0, 1, 0), (1, 0, 0, shear, 1, 0)]
        matrices += [(1, 0, shift, 0, 1, 0), (1, 0, 0, 0, 1, shift)]
        return (
            lambda: ImageOps.autocontrast(image),
            lambda: ImageOps.equalize(image),
            lambda: ImageOps.posterize(image, 4 - int(4 * level)),
            lambda: ImageOps.solarize(image, 256 - int(256 * level)),
            lambda: image.rotate(int(30 * signed), Image.Resampling.BILINEAR),
            *(
                lambda matrix=matrix: image.transform(
                    image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
                )
                for matrix in matrices
            ),
        )[np.random.randint(9)]()

    def mix(self, x, y):
        if np.random.random() < 0.5:
            a, b = np.random.beta(self.beta, 1), np.random.beta(1, self.beta)
        else:
            a, b = 1 + np.random.beta(1, self.beta), -np.random.beta(1, self.beta)
        if np.random.random() < 0.5:
            return (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2
        return (2 * x) ** a * (2 * y).clip(1e-37) ** b / 2


def plain_loader(images, labels, batch_size=BATCH):
    """Return a loader whose workers outlive an epoch, so that their start is not measured."""
    data = PlainImages(images, labels)
    workers = {"num_workers": CORES, "persistent_workers": True}
    return DataLoader(data, batch_size=batch_size, shuffle=True, **workers)


def plain_epoch(model, optimizer, loader):
    """Train for one epoch."""
    for x, y in loader:
        x = x * 2 - 1
        logits, reconstruction = model(x)
        loss = F.cross_entropy(logits, y) + RECONSTRUCTION * F.mse_loss(reconstruction, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def plain_metrics(known, unknown):
    """Return what `osr_utils.ood_metrics` returns, from scikit-learn."""
    scores = np.concatenate([known, unknown])
    truth = np.repeat([0, 1], [len(known), len(unknown)])
    alarms, hits, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(truth, scores),
        "aupr_in": average_precision_score(1 - truth, -scores),
        "aupr_out": average_precision_score(truth, scores),
        "fpr95": alarms[np.searchsorted(hits, 0.95)],
    }


# --- measuring ------------------------------------------------------------------------------------


def say(text):
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def seconds(function):
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def side_by_side(ours, theirs, repeats=REPEATS):
    """Return the median seconds of two functions, called in turn after a warm-up."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return [statistics.median(side) for side in zip(*times, strict=True)]


def row(name, unit, ours, theirs, ratio, goal, note="", judged=True):
    """Print one measurement and return it; `goal` is such as ">= 10", `ratio` None if missed."""
    sign, bound = goal.split()
    met = ratio is not None and (ratio >= float(bound) if sign == ">=" else ratio <= float(bound))
    met = met if judged else None
    values = {"ours": ours, "theirs": theirs, "ratio": ratio}
    text = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if value is not None)
    verdict = {True: "met", False: "not met", None: "not judged here"}[met]
    say(f"{name} [{unit}]: {text}, goal {goal}: {verdict}" + (f" ({note})" if note else ""))
    return {"name": name, "unit": unit, **values, "goal": goal, "met": met, "note": note}


# --- the measurements -----------------------------------------------------------------------------


def load_digits():
    """Return (images, labels) to train on and to calibrate on: uint8 and int64 arrays."""
    digits = osr_utils.load_images("mnist", "train")
    n = len(digits.labels)
    sizes = SIZES if sum(SIZES) <= n else (n * 9 // 10, n // 10)  # the demo has 4,000 digits
    return [(digits.images[i], digits.labels[i]) for i in osr_utils.sample_split(n, sizes, seed=0)]


def load_test():
    """Return the reference's test mix as tensors: all MNIST-test, 750 of each unknown set."""
    digits = osr_utils.load_images("mnist", "test")
    images = [osr_utils.to_model_input(digits.images)]
    labels = [torch.from_numpy(digits.labels)]
    for name in ("fashionmnist", "cifar10"):
        unknown = osr_utils.load_images(name, "test").images
        n = min(UNKNOWN, len(unknown))
        (index,) = osr_utils.sample_split(len(unknown), (n,), seed=0)
        images.append(osr_utils.to_model_input(unknown[index]))
        labels.append(torch.full((n,), osr_utils.OOD_LABEL))
    return torch.cat(images), torch.cat(labels)


def batches(images, labels, size=500):
    """Return a list of batches, in order."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def bench_pipeline(images, labels):
    """Augmented images a second."""
    x = osr_utils.to_model_input(images)
    generator = torch.Generator().manual_seed(0)
    loader = plain_loader(images, labels)

    def ours():
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            osr_utils.augment(x[index], generator)

    def theirs():  # nearest neighbour, torchvision's default; ours is bilinear
        for _ in loader:
            pass

    rates = [len(x) / duration for duration in side_by_side(ours, theirs)]
    return row("input pipeline", "images/s", *rates, rates[0] / rates[1], ">= 10")


def multitask_loss(model, x, y):
    """Return cross entropy plus the weighted reconstruction error."""
    logits, error = model.logits_and_error(x)
    return F.cross_entropy(logits, y) + RECONSTRUCTION * error.mean()


def train_ours(images, labels, epochs, **options):
    """Return System A's network, trained from scratch."""
    osr_utils.seed_everything(0)
    model = osr_utils.MultitaskAutoencoder()
    options = {"augmentation": osr_utils.augment, "seed": 0, **options}
    osr_utils.train(model, images, labels, multitask_loss, epochs=epochs, **options)
    return model


def bench_training(images, labels):
    """Seconds an epoch, input pipeline included."""
    x, y = osr_utils.to_model_input(images), torch.from_numpy(labels)
    loader = plain_loader(images, labels)
    model = PlainAutoencoder()
    optimizer = torch.optim.Adam(model.parameters())
    times = side_by_side(
        lambda: train_ours(x, y, 1, batch_size=BATCH),
        lambda: plain_epoch(model, optimizer, loader),
    )
    bf16 = has_bf16(CPU)
    note = "" if bf16 else "the goal is for a processor with bf16 instructions, which this lacks"
    return row("training", "s/epoch", *times, times[1] / times[0], ">= 2.5", note, bf16)


def bench_headline(fit, held_out, plain_seconds):
    """Seconds of training, calibration and evaluation until the reference's headline is reached.

    The test mix stops the clock and nothing else: no model or setting of the report comes from it.
    """
    x, y = osr_utils.to_model_input(fit[0]), torch.from_numpy(fit[1])
    calibration = batches(osr_utils.to_model_input(held_out[0]), torch.from_numpy(held_out[1]))
    test = batches(*load_test())
    spent, took = 0.0, None
    for epochs in TRIES:
        start = time.perf_counter()
        model = train_ours(x, y, epochs, **FAST)
        model.alpha.fill_(osr_utils.calibrate_alpha_percentile(model, calibration, CPU, PERCENTILE))
        known, unknown, total = osr_utils.eval_model(model, test, CPU)
        duration = time.perf_counter() - start
        spent += duration
        say(
            f"  {epochs} epochs, percentile {PERCENTILE}: {duration:.1f} s, "
            f"MNIST {known:.4f}, OOD {unknown:.4f}, total {total:.4f}"
        )
        if total >= HEADLINE:
            took = duration
            break
    theirs = plain_seconds * EPOCHS
    note = f"theirs is one plain epoch x {EPOCHS}; "
    note += f"ours took {epochs} epochs" if took else f"{HEADLINE} was not reached"
    summed = took and spent  # None where no try succeeded
    return [
        row("to the headline", "s", took, theirs, took and theirs / took, ">= 20", note),
        row("same, all tries", "s", summed, theirs, took and theirs / spent, ">= 20", note),
    ]


def reconstruct_loss(model, x, y):
    """Return the mean squared error."""
    return F.mse_loss(model(x), x)


def train_for_sweep(config, images, labels):
    """Train one configuration of a sweep for an epoch."""
    model, x = SmallAutoencoder(config["latent_dim"]), osr_utils.to_model_input(images)
    options = {"batch_size": SWEEP_BATCH, "augmentation": osr_utils.augment}
    y = torch.from_numpy(labels)
    return osr_utils.train(model, x, y, reconstruct_loss, epochs=1, seed=0, **options)


def bench_pixmix(images):
    """Images a second through PixMix: the same operations, two threads against two processes."""
    notebook = osr_utils.ROOT / "notebooks/05_pixmix_outlier_exposure.ipynb"
    pixmix = run_notebooks.definitions(notebook)["pixmix"]
    images = images[:MIXED]
    x = osr_utils.to_model_input(images)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    loader = DataLoader(
        PlainPixMix(images, images[::-1].copy()), BATCH, num_workers=2, persistent_workers=True
    )

    def ours():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a batch a thread is faster than both on one batch
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, x.chunk(2), generators))
        torch.set_num_threads(threads)

    def work(part, generator):
        for batch in part.split(MIXED_BATCH):
            pixmix(batch, x, generator)

    def theirs():
        for _ in loader:
            pass

    times = side_by_side(ours, theirs)
    speeds = [len(images) / duration for duration in times]
    return row("pixmix", "images/s", *speeds, speeds[0] / speeds[1], ">= 20")


def bench_sweep(images, labels):
    """Seconds a configuration of a sweep, each trained for one epoch."""
    configs = [{"latent_dim": size} for size in SWEEP]
    loader = plain_loader(images, labels, SWEEP_BATCH)

    def ours():
        own = os.environ.get("OSR_OUTPUT")
        with tempfile.TemporaryDirectory() as folder:  # or the second call would find its rows
            os.environ["OSR_OUTPUT"] = folder
            try:
                arrays = {"images": images, "labels": labels}
                rows = osr_utils.run_sweep(train_for_sweep, configs, arrays)
            finally:
                del os.environ["OSR_OUTPUT"]
                if own is not None:
                    os.environ["OSR_OUTPUT"] = own
        if problems := [row["problem"] for row in rows if row["problem"]]:
            raise AssertionError(problems[0])

    def theirs():
        for config in configs:
            model = SmallAutoencoder(config["latent_dim"])
            optimizer = torch.optim.Adam(model.parameters())
            for x, _ in loader:
                loss = F.mse_loss(model(x), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    times = [duration / len(configs) for duration in side_by_side(ours, theirs)]
    return row("sweep", "s/configuration", *times, times[1] / times[0], ">= 2.5")


def bench_eval_model(images, labels):
    """Seconds of `eval_model` against the bare forward passes."""
    index = torch.arange(EVALUATED) % len(images)  # repeats images where there are too few
    data = batches(osr_utils.to_model_input(images)[index], torch.from_numpy(labels)[index])
    model = osr_utils.MultitaskAutoencoder().eval()

    @torch.inference_mode()
    def forward():
        for x, _ in data:
            model(x)

    # Five pairs: the ratio is close to 1, where noise shows.
    times = side_by_side(lambda: osr_utils.eval_model(model, data, CPU), forward, 5)
    return row("eval_model", "s", *times, times[0] / times[1], "<= 1.1")


def bench_detector(images):
    """Images a second through the detector, float32, as `load_model` gives it."""
    x = osr_utils.to_model_input(images)[torch.arange(EVALUATED) % len(images)]
    model = osr_utils.OpenSetDetector().to(memory_format=torch.channels_last).eval()
    seconds = []
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        osr_utils.predict(model, x)
        seconds.append(time.perf_counter() - start)
    rate = len(x) / statistics.median(seconds[1:])
    return row("osr_detector", "img/s", rate, None, rate, ">= 2000")


def bench_metrics():
    """Seconds of `ood_metrics` against scikit-learn, which must agree."""
    rng = np.random.default_rng(0)
    known = rng.standard_normal(SCORES, dtype=np.float32)
    unknown = rng.standard_normal(SCORES, dtype=np.float32) + 2
    results = [None, None]

    def ours():
        results[0] = osr_utils.ood_metrics(known, unknown)

    def theirs():
        results[1] = plain_metrics(known, unknown)

    times = side_by_side(ours, theirs)
    for key, value in results[0].items():
        if abs(value - results[1][key]) > 1e-9:
            raise AssertionError(f"{key}: ours is {value}, scikit-learn's {results[1][key]}")
    return row("ood_metrics", "s", *times, times[1] / times[0], ">= 2")


def bench_memory():
    """Peak memory of this process and its largest worker so far; both count shared pages."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = sum(resource.getrusage(w).ru_maxrss for w in who) * unit / 1e9
    return row("peak memory", "GB", peak, None, peak, "<= 4")


# --- the run --------------------------------------------------------------------------------------


def choose_images():
    """Take the demo's images where the real ones are not there, and say so."""
    needed = [("mnist", "train"), ("mnist", "test"), ("fashionmnist", "test"), ("cifar10", "test")]
    if not all(osr_utils.is_available(*pair) for pair in needed):
        os.environ["OSR_PROFILE"] = "demo"
    if osr_utils.profile() == "demo":
        return "demo (the goals are meant for all of MNIST and CIFAR-10: `make data`)"
    return "MNIST"


def describe_machine():
    """Return the hardware and the versions that the numbers belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": CORES,
        "bf16": has_bf16(CPU),
        "load": round(os.getloadavg()[0], 2),  # an idle machine is near 0
        "torch": torch.__version__,
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def main():
    """Run every measurement and store the rows."""
    os.environ["OSR_PROGRESS"] = "0"  # a line each instead of bars
    start = time.perf_counter()
    images, machine = choose_images(), describe_machine()
    say(", ".join(f"{key}: {value}" for key, value in machine.items()))
    say(f"images: {images}{', BENCH_QUICK: the numbers mean nothing' if QUICK else ''}")
    fit, held_out = load_digits()
    rows = [bench_pipeline(*fit), bench_training(*fit)]
    rows += bench_headline(fit, held_out, rows[1]["theirs"])
    rows += [
        bench_pixmix(fit[0]),
        bench_sweep(*fit),
        bench_eval_model(*fit),
        bench_detector(fit[0]),
        bench_metrics(),
        bench_memory(),
    ]
    content = {"images": images, "machine": machine, "rows": rows}
    name = "bench_quick.json" if QUICK else "bench.json"
    with osr_utils.atomic_path(osr_utils.results_dir() / ".local" / name) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"{time.perf_counter() - start:.0f} s; {osr_utils.results_dir() / '.local' / name}")


if __name__ == "__main__":
    main()
