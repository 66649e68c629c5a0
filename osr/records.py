"""What each data set is: where it comes from, its terms, its classes, its colour."""

from typing import NamedTuple

CORRUPTIONS = (  # of MNIST-C, "identity" left out
    "brightness", "canny_edges", "dotted_line", "fog", "glass_blur", "impulse_noise",
    "motion_blur", "rotate", "scale", "shear", "shot_noise", "spatter", "stripe", "translate",
    "zigzag",
)  # fmt: skip


class Record(NamedTuple):
    """What is known of a data set.

    A new one needs a line in `SETS` and, unless torchvision decodes it, a function in
    `osr.sources`.

    Attributes
    ----------
    title, licence : str
        As tables name them.
    source : str
        Of a download: a class of ``torchvision.datasets``, or else a function of `osr.sources`
        that decodes the archive at `address`. Of a set that the dependencies bring: a function of
        `osr.sources`, and no `address`.
    address, md5 : str
        The server or the archive, and the archive's checksum.
    classes : int
        Labels run from 0 to classes - 1.
    colour : str
        In figures; grey where no figure shows the set beside others.
    demo : str
        The function of `osr.sources` that stands in for it in a demo; "" for none.
    wanted : tuple of str
        The splits that `make data` fetches.
    cloned : tuple of str
        The splits that come with the repository, in data/.
    """

    title: str
    licence: str
    source: str
    address: str = ""
    md5: str = ""
    classes: int = 10
    colour: str = "#777777"
    demo: str = ""
    wanted: tuple = ("train", "test")
    cloned: tuple = ()


_MNIST = "https://ossci-datasets.s3.amazonaws.com"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_TORONTO = "https://www.cs.toronto.edu"
_MNIST_C = "https://zenodo.org/record/3239543/files/mnist_c.zip"
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SETS = {
    "mnist": Record(
        "MNIST", "CC BY-SA 3.0", "MNIST", _MNIST, colour="#0072B2", cloned=("train", "test")
    ),
    "fashionmnist": Record(
        "FashionMNIST", "MIT", "FashionMNIST", _FASHION, colour="#D55E00", cloned=("train", "test")
    ),
    "kmnist": Record(
        "KMNIST", "CC BY-SA 4.0", "KMNIST", "http://codh.rois.ac.jp", colour="#CC79A7",
        cloned=("test",),
    ),
    "cifar10": Record(
        "CIFAR-10", "none stated", "CIFAR10", _TORONTO, colour="#009E73", demo="photographs"
    ),
    "cifar100": Record("CIFAR-100", "none stated", "CIFAR100", _TORONTO, classes=100),
    "svhn": Record(
        "SVHN", "non-commercial use", "SVHN", "http://ufldl.stanford.edu", colour="#E69F00",
        demo="photographs",
    ),
    "tinyimagenet": Record(
        "TinyImageNet", "research only", "tinyimagenet", _TINY, "90528d7ca1a48142e341f4ef8d21d0de",
        classes=200, colour="#56B4E9", demo="photographs",
    ),
    "mnist_c/identity": Record("MNIST-C, identity", "CC BY 4.0", "mnist_c", _MNIST_C, wanted=()),
    **{
        f"mnist_c/{name}": Record(
            f"MNIST-C, {name.replace('_', ' ')}", "CC BY 4.0", "mnist_c", _MNIST_C,
            "4b34b33045869ee6d424616cd3a65da3", wanted=("test",),
            demo="corrupted" if name in ("brightness", "impulse_noise", "translate") else "",
        )
        for name in CORRUPTIONS
    },
    "uci_digits": Record("UCI digits", "CC BY 4.0, with scikit-learn", "digits", wanted=()),
    "letters": Record("letters", "drawn from matplotlib's fonts", "letters", wanted=()),
    "symbols": Record("symbols", "drawn from matplotlib's fonts", "symbols", wanted=()),
}  # fmt: skip
COLORS = {name: record.colour for name, record in SETS.items()}  # and of methods: osr.figures


def folded(names):
    """Return names of data sets, each once, with the corruptions of MNIST-C as one: mnist_c."""
    return list(dict.fromkeys(name.split("/")[0] for name in names))
