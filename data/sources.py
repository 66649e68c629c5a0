"""Where images come from: the official downloads, and what the dependencies bring."""

import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import torch.nn.functional as F
import torchvision
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from torch import tensor
from tqdm.auto import tqdm

TORCHVISION = {  # name -> (class, the server that it downloads from)
    "mnist": ("MNIST", "https://ossci-datasets.s3.amazonaws.com"),
    "fashionmnist": ("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
    "kmnist": ("KMNIST", "http://codh.rois.ac.jp"),
    "cifar10": ("CIFAR10", "https://www.cs.toronto.edu"),
    "cifar100": ("CIFAR100", "https://www.cs.toronto.edu"),
    "svhn": ("SVHN", "http://ufldl.stanford.edu"),
}
ARCHIVES = {  # name -> (address, MD5)
    "mnist_c": (
        "https://zenodo.org/record/3239543/files/mnist_c.zip",
        "4b34b33045869ee6d424616cd3a65da3",
    ),
    "tinyimagenet": (
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
}


# --- official downloads ---------------------------------------------------------------------------


def official(name, split, folder):
    """Download a set into a folder; yield (name, split, images, labels) of all that it brings."""
    if name in TORCHVISION:
        splits = [split] if name == "svhn" else ["train", "test"]  # the others come in one piece
        for part in splits:
            yield name, part, *_from_torchvision(name, part, folder)
        return
    address, md5 = ARCHIVES[name.split("/")[0]]
    torchvision.datasets.utils.download_and_extract_archive(address, folder, md5=md5)
    if name == "tinyimagenet":
        yield name, split, *_tinyimagenet(Path(folder) / "tiny-imagenet-200", split)
        return
    for part in sorted((Path(folder) / "mnist_c").iterdir()):  # one archive holds all corruptions
        images = np.load(part / f"{split}_images.npy")[..., 0]
        labels = np.load(part / f"{split}_labels.npy").astype(np.int64)
        yield f"mnist_c/{part.name}", split, images, labels


def online(name, seconds=6):
    """Return whether the source of a set answers, without waiting for a resolver that hangs."""
    address = TORCHVISION[name][1] if name in TORCHVISION else ARCHIVES[name.split("/")[0]][0]
    answer = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds)
        except urllib.error.HTTPError:
            pass  # a server that refuses is a server
        except OSError:
            return
        answer.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answer.is_set()


def _from_torchvision(name, split, folder):
    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    data = getattr(torchvision.datasets, TORCHVISION[name][0])(folder, download=True, **which)
    images = np.asarray(data.data).astype(np.uint8)
    if name == "svhn":
        return images.transpose(0, 2, 3, 1), np.asarray(data.labels, dtype=np.int64)
    return images, np.asarray(data.targets, dtype=np.int64)


def _tinyimagenet(folder, split):
    """Decode TinyImageNet (its labelled validation split serves as test), resized to 32x32."""
    words = (folder / "wnids.txt").read_text().split()
    if split == "train":
        pairs = [(p, w) for w in words for p in sorted((folder / "train" / w).rglob("*.JPEG"))]
    else:
        lines = (folder / "val/val_annotations.txt").read_text().splitlines()
        pairs = [(folder / "val/images" / file, word) for file, word, *_ in map(str.split, lines)]
    images = [
        np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        for path, _ in tqdm(pairs, desc="TinyImageNet")
    ]
    return np.stack(images), np.array([words.index(word) for _, word in pairs], dtype=np.int64)


# --- sets from the dependencies: each takes (name, split) and returns (images, labels, note) ------


def _digits(name, split):
    digits = load_digits()
    x = tensor(digits.images).float()[:, None] / 16
    x = F.interpolate(x, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (F.pad(x, (4, 4, 4, 4))[:, 0] * 255).round().byte().numpy()
    order = np.random.default_rng(0).permutation(len(images))
    part = order[:1297] if split == "train" else order[1297:]
    return images[part], digits.target[part].astype(np.int64), "UCI digits of scikit-learn, 28x28"


def _corrupted_digits(name, split):
    images, labels, _ = _digits(name, split)
    x = images.astype(np.float32)
    if name == "mnist_c/brightness":
        x = x + 80
    elif name == "mnist_c/impulse_noise":
        noise = np.random.default_rng(0).random(x.shape)
        x = np.where(noise < 0.1, 0, np.where(noise > 0.9, 255, x))
    else:
        x = np.roll(x, (3, -3), (1, 2))
    return x.clip(0, 255).astype(np.uint8), labels, "corrupted UCI digits of scikit-learn"


def _letters(name, split):
    glyphs = _glyphs("ABCDEFGHKMNPRTUVWXYZ", split)  # none that is drawn like a digit
    return *glyphs, f"letters from the fonts of matplotlib, drawn by Pillow {PIL.__version__}"


def _symbols(name, split):
    glyphs = _glyphs("ΓΔΘΛΞΠΣΦΨΩ∂∇∞∫≈≠≤≥±×", split)
    return *glyphs, f"symbols from the fonts of matplotlib, drawn by Pillow {PIL.__version__}"


@cache
def _glyphs(characters, split):
    # Training and test glyphs come from different families of fonts.
    fonts = ("DejaVuSans", "DejaVuSerif") if split == "train" else ("STIXGeneral", "STIXGeneralBol")
    faces = [ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{f}.ttf", 22) for f in fonts]
    rng = np.random.default_rng(split == "test")  # other places, angles and order as well
    classes = rng.integers(len(characters), size=500)
    images = []
    for index in classes:
        image = Image.new("L", (28, 28))
        where = tuple(rng.uniform(12, 16, size=2))
        face = faces[rng.integers(2)]
        ImageDraw.Draw(image).text(where, characters[index], 255, font=face, anchor="mm")
        images.append(np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)))
    return np.stack(images), (classes % 10).astype(np.int64)


def _photographs(name, split):
    shrink = {"cifar10": 1, "svhn": 2, "tinyimagenet": 4}[name]
    rng = np.random.default_rng(shrink)
    photos = [photo[::shrink, ::shrink] for photo in load_sample_images().images]
    half = [photo.shape[1] // 2 for photo in photos]  # training and test patches do not overlap
    if split == "train":
        photos = [photo[:, :h] for photo, h in zip(photos, half, strict=True)]
    else:
        photos = [photo[:, h:] for photo, h in zip(photos, half, strict=True)]
    crops = []
    for index in rng.integers(2, size=500):
        top, left = (rng.integers(side - 32) for side in photos[index].shape[:2])
        crops.append(photos[index][top : top + 32, left : left + 32])
    note = "patches of scikit-learn's sample photographs, labels without meaning"
    return np.stack(crops), rng.integers(10, size=500), note


BUNDLED = {"uci_digits": _digits, "letters": _letters, "symbols": _symbols}
DEMO = {
    "mnist": _digits, "fashionmnist": _letters, "kmnist": _symbols, "cifar10": _photographs,
    "svhn": _photographs, "tinyimagenet": _photographs, "mnist_c/brightness": _corrupted_digits,
    "mnist_c/impulse_noise": _corrupted_digits, "mnist_c/translate": _corrupted_digits,
}  # fmt: skip
