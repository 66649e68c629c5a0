"""Download every data set that is not cached yet: `python data/download.py`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import osr_utils as osr  # noqa: E402

NAMES = ("mnist", "fashionmnist", "kmnist", "cifar10", "svhn", "tinyimagenet", "cifar100")
WANTED = [(name, split) for name in NAMES for split in ("train", "test")]
WANTED += [(f"mnist_c/{corruption}", "test") for corruption in osr.CORRUPTIONS]

os.environ["OSR_PROFILE"] = "full"
missing = []
for name, split in WANTED:
    try:
        images = osr.load_images(name, split).images
        print(f"{name}-{split}: {len(images):,} images", flush=True)
    except osr.DatasetNotFoundError:
        missing.append(f"{name}-{split}")
        print(f"{name}-{split}: its source does not answer", flush=True)
    except ValueError as error:
        missing.append(f"{name}-{split}")
        print(error, flush=True)
if missing:
    sys.exit(f"missing: {', '.join(missing)}; run `make data` again later")
