"""Where images come from: the official downloads, and what the dependencies bring."""

import socket
import ssl
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import PIL
import torch.nn.functional as F
import torchvision
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from torch import from_numpy

from osr.drawings import read_picture
from osr.paths import one_line, progress

# --- official downloads ---------------------------------------------------------------------------


def official(name, split, record, folder):
    """Download a set into a folder; yield (name, split, images, labels) of all that it brings."""
    if record.source not in globals():
        splits = [split] if name == "svhn" else ["train", "test"]  # the others come in one piece
        for part in splits:
            yield name, part, *_from_torchvision(record.source, part, folder)
        return
    download_and_extract_archive = torchvision.datasets.utils.download_and_extract_archive
    download_and_extract_archive(record.address, folder, md5=record.md5)
    yield from globals()[record.source](name, split, Path(folder))


def mnist_c(name, split, folder):
    """Decode MNIST-C: one archive holds all corruptions."""
    for part in sorted((folder / "mnist_c").iterdir()):
        images = np.load(part / f"{split}_images.npy")[..., 0]
        labels = np.load(part / f"{split}_labels.npy").astype(np.int64)
        yield f"mnist_c/{part.name}", split, images, labels


def tinyimagenet(name, split, folder):
    """Decode TinyImageNet (its labelled validation split serves as test), resized to 32x32."""
    folder = folder / "tiny-imagenet-200"
    words = (folder / "wnids.txt").read_text().split()
    if split == "train":
        pairs = [(p, w) for w in words for p in sorted((folder / "train" / w).rglob("*.JPEG"))]
    else:
        lines = (folder / "val/val_annotations.txt").read_text().splitlines()
        pairs = [(folder / "val/images" / file, word) for file, word, *_ in map(str.split, lines)]
    images = [
        np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        for path, _ in progress(pairs, "TinyImageNet")
    ]
    labels = np.array([words.index(word) for _, word in pairs], dtype=np.int64)
    yield name, split, np.stack(images), labels


def unreachable(address, seconds=6):
    """Return why a server does not answer, "" if it does; not waiting for a resolver that hangs."""
    server = urlsplit(address).hostname
    found = [f"{server} gives no answer within {seconds} s"]  # the last one counts

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds)
        except urllib.error.HTTPError:
            found.append("")  # a server that refuses a request is a server
        except Exception as error:  # of sockets, certificates and http.client, some no OSError
            found.append(_what_failed(server, error) or found[0])
        else:
            found.append("")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return found[-1]


def _what_failed(server, error):
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    match cause:
        case ssl.SSLCertVerificationError():
            why = "has a certificate that is not accepted; are this computer's clock and "
            why += "certificates up to date, is there a proxy?"
        case socket.gaierror():
            why = "is not found; is there a network?"
        case ConnectionRefusedError():
            why = "refuses the connection; is there a proxy?"
        case TimeoutError():
            return ""
        case _:
            why = "cannot be asked"
    return f"{server} {why} ({cause})"


def _from_torchvision(kind, split, folder):
    which = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    data = getattr(torchvision.datasets, kind)(folder, download=True, **which)
    images = np.asarray(data.data).astype(np.uint8)
    if kind == "SVHN":
        return images.transpose(0, 2, 3, 1), np.asarray(data.labels, dtype=np.int64)
    return images, np.asarray(data.targets, dtype=np.int64)


# --- a set of one's own ---------------------------------------------------------------------------


def class_folders(folder):
    """Return images and labels of a folder with one folder of pictures a class.

    Pictures of one size are kept as they are, of several sizes resized to 64 x 64. What is no
    picture is left out, and named with the reason.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    pictures, labels, broken = [], [], []
    for label, place in enumerate(classes):
        for path in sorted(place.iterdir()):
            if not path.is_file():
                continue
            try:
                pictures.append(read_picture(path))
                labels.append(label)
            except ValueError as error:
                broken.append(one_line(f"{place.name}/{path.name} ({error})"))
    if broken:
        print(one_line(f"{folder}: {len(broken)} files are no pictures: {', '.join(broken)}", 2000))
    if not pictures:
        raise ValueError(
            f"no readable picture in the folders of {folder}: make one folder for each class, and "
            "put its pictures there"
        )
    if len({picture.size for picture in pictures}) > 1:
        pictures = [picture.resize((64, 64), Image.Resampling.BILINEAR) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in pictures]), np.array(labels, np.int64)


# --- sets from the dependencies: each takes (name, split) and returns (images, labels, note) ------


def digits(name, split):
    """Return UCI digits, enlarged to 28x28: 1,297 to train, 500 to test."""
    uci = load_digits()
    x = from_numpy(uci.images).float()[:, None] / 16
    x = F.interpolate(x, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (F.pad(x, (4, 4, 4, 4))[:, 0] * 255).round().byte().numpy()
    order = np.random.default_rng(0).permutation(len(images))
    part = order[:1297] if split == "train" else order[1297:]
    return images[part], uci.target[part].astype(np.int64), "UCI digits of scikit-learn, 28x28"


def corrupted(name, images):
    """Return images brighter, noisy or shifted, in place of MNIST-C."""
    x = images.astype(np.float32)
    if name == "mnist_c/brightness":
        x = x + 80
    elif name == "mnist_c/impulse_noise":
        noise = np.random.default_rng(0).random(x.shape)
        x = np.where(noise < 0.1, 0, np.where(noise > 0.9, 255, x))
    else:
        x = np.roll(x, (3, -3), (1, 2))
    return x.clip(0, 255).astype(np.uint8)


def letters(name, split):
    """Return 500 letters, of other fonts in each split."""
    glyphs = _glyphs("ABCDEFGHKMNPRTUVWXYZ", split)  # none that is drawn like a digit
    return *glyphs, f"letters from the fonts of matplotlib, drawn by Pillow {PIL.__version__}"


def symbols(name, split):
    """Return 500 symbols, of other fonts in each split."""
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


def photographs(name, split):
    """Return 500 patches, 32x32 RGB; each half of the photographs is a split.

    The ten labels are a photograph and a fifth of the range of brightness, so that there is
    something to learn.
    """
    shrink = {"cifar10": 1, "svhn": 2, "tinyimagenet": 4}[name]
    rng = np.random.default_rng(shrink)
    photos = [photo[::shrink, ::shrink] for photo in load_sample_images().images]
    half = [photo.shape[1] // 2 for photo in photos]  # training and test patches do not overlap
    if split == "train":
        photos = [photo[:, :h] for photo, h in zip(photos, half, strict=True)]
    else:
        photos = [photo[:, h:] for photo, h in zip(photos, half, strict=True)]
    crops, labels = [], []
    for index in rng.integers(2, size=500):
        top, left = (rng.integers(side - 32) for side in photos[index].shape[:2])
        crops.append(photos[index][top : top + 32, left : left + 32])
        labels.append(5 * index + min(4, int(crops[-1].mean()) // 52))
    note = "patches of scikit-learn's sample photographs; labels: which one, and how bright"
    return np.stack(crops), np.array(labels, np.int64), note
