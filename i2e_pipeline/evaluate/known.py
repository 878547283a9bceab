"""The data sets that are known by name: how many images, where they are to be had, how they must lie on the disk.

Counts are the benchmarks' own. MD5 sums are those that the publisher or torchvision 0.29 checks downloads by (RESISC45:
torchgeo's); where neither publishes any, there is none here. Nothing is ever fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Known:
    """What is known of a published data set."""

    title: str
    images: int
    classes: int
    """0: images have no classes, but a ground truth by query."""
    splits: dict[str, int]
    """Images by split; of a split that we draw (`drawn`), what the draw gives."""
    layout: str
    """What the folder that is named must hold."""
    page: str
    """Where it is to be had."""
    licence: str
    """As its page states it."""
    archives: dict[str, str | None] = field(default_factory=dict)
    """What is downloaded: file name, MD5."""
    files: dict[str, str] = field(default_factory=dict)
    """Files of the layout with MD5 sums, which `i2e doctor` compares."""
    optional: dict[str, int] = field(default_factory=dict)
    """Images of splits that may be there beside `images`, or not at all."""
    drawn: dict[str, float] | None = None
    """Shares of splits that the authors left to others and that we draw by hash of the content."""
    note: str = ""


_ALL = {
    "gpr1200": Known(
        "GPR1200", 12_000, 1_200, {},
        "images/CATEGORY_NAME.jpg, CATEGORY 0 … 1199, ten images each",
        "https://github.com/Visual-Computing/GPR1200", "non-commercial research and education (README)",
        {"GPR1200.zip": None},
    ),
    "roxford5k": Known(
        "ROxford5k", 5_063, 0, {"query": 70, "gallery": 4_993},
        "gnd_roxford5k.pkl (or .json), jpg/NAME.jpg",
        "http://cmp.felk.cvut.cz/revisitop/ (ground truth), "
        "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/ (images)",
        "none stated", {"oxbuild_images.tgz": None, "gnd_roxford5k.pkl": None},
    ),
    "rparis6k": Known(
        "RParis6k", 6_392, 0, {"query": 70, "gallery": 6_322},
        "gnd_rparis6k.pkl (or .json), jpg/NAME.jpg (both archives, without their folders)",
        "http://cmp.felk.cvut.cz/revisitop/ (ground truth), "
        "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/ (images)",
        "none stated", {"paris_1.tgz": None, "paris_2.tgz": None, "gnd_rparis6k.pkl": None},
    ),
    "imagenet": Known(
        "ImageNet (ILSVRC 2012) validation", 50_000, 1_000, {"test": 50_000},
        "val/WNID/NAME.JPEG, or WNID/NAME.JPEG: 1,000 folders of 50 images; for neighbours and probes also "
        "train/WNID/NAME.JPEG",
        "https://image-net.org/download.php", "non-commercial research, after registration",
        {
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        },
        optional={"train": 1_281_167},
        note="the archives are read as they are, that of the development kit beside them",
    ),
    "caltech101": Known(
        "Caltech-101", 9_144, 102, {"train": 3_060, "test": 6_084},
        "101_ObjectCategories/CLASS/image_0001.jpg, BACKGROUND_Google included (102 classes, as VTAB has them)",
        "https://data.caltech.edu/records/mzrjq-6wc02", "CC BY 4.0",
        {"caltech-101.zip": "3138e1922a9193bfa496528edbbc45d0"},
        note="30 images of each class to train on, as in VTAB; which ones is drawn by hash of the content",
    ),
    "cifar100": Known(
        "CIFAR-100", 60_000, 100, {"train": 50_000, "test": 10_000},
        "cifar-100-python/train, test, meta",
        "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated",
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        {
            "train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "svhn": Known(
        "SVHN", 99_289, 10, {"train": 73_257, "test": 26_032},
        "train_32x32.mat, test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/", "non-commercial use",
        {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
        {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
    ),
    "dtd": Known(
        "DTD", 5_640, 47, {"train": 1_880, "val": 1_880, "test": 1_880},
        "dtd/images/CLASS/NAME.jpg, dtd/labels/train1.txt, val1.txt, test1.txt (the first of its ten partitions)",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/", "research",
        {"dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1"},
    ),
    "pets": Known(
        "Oxford-IIIT Pet", 7_349, 37, {"train": 3_680, "test": 3_669},
        "images/BREED_1.jpg, annotations/trainval.txt, test.txt",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/", "CC BY-SA 4.0",
        {
            "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
        },
    ),
    "flowers102": Known(
        "Oxford Flowers 102", 8_189, 102, {"train": 1_020, "val": 1_020, "test": 6_149},
        "jpg/image_00001.jpg, imagelabels.mat, setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", "none stated",
        {
            "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
            "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
            "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        },
        {"imagelabels.mat": "e0620be6f572b9609742df49c70aed4d", "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c"},
    ),
    "eurosat": Known(
        "EuroSAT (RGB)", 27_000, 10, {"train": 16_200, "val": 5_400, "test": 5_400},
        "2750/CLASS/CLASS_1.jpg",
        "https://github.com/phelber/EuroSAT", "MIT",
        {"EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387"},
        drawn={"train": 0.6, "val": 0.2, "test": 0.2},
        note="the authors give no splits: 60, 20 and 20 % of each class, drawn by hash of the content",
    ),
    "resisc45": Known(
        "RESISC45", 31_500, 45, {"train": 18_900, "val": 6_300, "test": 6_300},
        "NWPU-RESISC45/CLASS/CLASS_001.jpg",
        "https://gcheng-nwpu.github.io/", "none stated",
        {"NWPU-RESISC45.rar": "d824acb73957502b00efd559fc6cfbbb"},
        drawn={"train": 0.6, "val": 0.2, "test": 0.2},
        note="the authors give no splits: 60, 20 and 20 % of each class, drawn by hash of the content",
    ),
    "camelyon": Known(
        "PatchCamelyon", 327_680, 2, {"train": 262_144, "val": 32_768, "test": 32_768},
        "pcam/camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, unpacked",
        "https://github.com/basveeling/pcam", "CC0",
        {
            "camelyonpatch_level_2_split_train_x.h5.gz": "1571f514728f59376b705fc836ff4b63",
            "camelyonpatch_level_2_split_train_y.h5.gz": "35c2d7259d906cfc8143347bb8e05be7",
            "camelyonpatch_level_2_split_valid_x.h5.gz": "d5b63470df7cfa627aeec8b9dc0c066e",
            "camelyonpatch_level_2_split_valid_y.h5.gz": "2b85f58b927af9964a4c15b8f7e8f179",
            "camelyonpatch_level_2_split_test_x.h5.gz": "d8c2d60d490dbd479f8199bdfa0cf6ec",
            "camelyonpatch_level_2_split_test_y.h5.gz": "60a7035772fbdb7f34eb86d4420cf66a",
        },
    ),
}  # fmt: skip

KNOWN = MappingProxyType(_ALL)
"""By the name that `evaluate.data` uses."""
VTAB = ("caltech101", "cifar100", "svhn", "dtd", "pets", "flowers102", "eurosat", "resisc45", "camelyon")
"""The nine that MOFI's authors use for zero-shot and linear probes."""


def wanted(name: str) -> str:
    """How to get a known data set, and how it must lie."""
    known = KNOWN[name]
    archives = ", ".join(file + (f" (MD5 {md5})" if md5 else "") for file, md5 in known.archives.items())
    splits = ", ".join(f"{split} {count:,}" for split, count in known.splits.items())
    text = f"{known.title} is to be had at {known.page}" + (f": {archives}" if archives else "")
    text += f". Wanted in the folder: {known.layout}; {known.images:,} images"
    text += f" of {known.classes:,} classes" if known.classes else ""
    text += f" ({splits})" if splits else ""
    return text + (f". Note: {known.note}" if known.note else "")
