"""UP's `dataset`: lists of images, batches and loading of the training and the test split."""

from selfsight.config import near
from selfsight.data.config import several
from selfsight.interop.section import REPLACED, TAKEN, UNUSED
from selfsight.interop.up_draft import Keys
from selfsight.interop.up_views import read_mixing, read_test_views, read_views

META_TYPES = ("imagenet", "custom_cls", "moco_imagenet", "moco_custom")
READERS = ("fs_pillow", "fs_opencv")
LABELLED = ("fixed", "type", ("cls",), "images with labels")
SAMPLER = (
    ("fixed", "type", ("dist",), "each process reads its part of the batch"),
    ("ignore", "the sampler has no arguments", "kwargs"),
)
TOPK = ([1, 5], [5, 1], [1], [5])
EVALUATOR = (
    ("fixed", "type", ("imagenet",), "top-1 and top-5 are measured"),
    ("within", "kwargs", (("fixed", "topk", TOPK, "top-1 and top-5 are reported"),)),
)


def read_dataset(r: Keys) -> None:
    """`dataset`; as on UP's page, it may also be the dataset of the training images itself."""
    if "type" in r or "kwargs" in r:
        _images(r)
        return
    train, test = r.inside("train"), r.inside("test")
    _images(train.inside("dataset"))
    _batch(train.inside("batch_sampler"), train=True)
    _loader(train.inside("dataloader"))
    if r.out.pretrains:
        r.ignore("pretraining measures on training images only", "test")
    else:
        _test_images(test.inside("dataset"))
        _batch(test.inside("batch_sampler"), train=False)
        test.ignore("results do not depend on how test images are loaded", "dataloader")
    r.fixed("builder_type", ("base",), "there is one way to build the data")
    r.ignore("there is one training split and one test split", "data_pool")


def _images(r: Keys) -> None:
    """`dataset.train.dataset`."""
    r.read([LABELLED])
    k = r.inside("kwargs")
    _list(k, "path", "image_dir")
    read_views(k)
    if k.value("fraction", "number") == 1:
        k.ignore("all images are used", "fraction")
    elif r.out.pretrains:
        why = "every run uses the same images; in UP they came from a global random generator"
        k.copy("fraction", "data.fraction", why=why)
    else:
        why = "this fraction of each class, chosen by the seed and written to subset.txt"
        k.copy("fraction", "fraction", why=why)
    k.ignore("training images are not evaluated", "evaluator")


def _test_images(r: Keys) -> None:
    """`dataset.test.dataset` of an evaluation."""
    r.read([LABELLED])
    k = r.inside("kwargs")
    _list(k, "test_path", "test_image_dir")
    read_test_views(k)
    k.read(
        [
            ("fixed", "fraction", (1,), "all test images are used"),
            ("within", "evaluator", EVALUATOR),
        ]
    )


def _list(k: Keys, path: str, folder: str) -> None:
    """The list file and the folder of its images, of either split."""
    file = _strings(k, "meta_file")
    if file is not None:
        k.out.put("data.source", "list")
        # a list with labels and no test list would keep a fifth of its images for testing
        k.out.put("data.labels", not k.out.pretrains)
        k.set("meta_file", f"data.{path}", file)
    kinds = several(_strings(k, "meta_type") or [])
    unknown = [kind for kind in kinds if kind not in META_TYPES]
    if unknown:
        hint, known = near(unknown[0], META_TYPES), ", ".join(META_TYPES)
        k.refuse("meta_type", f"no such type of list file.{hint} Known: {known}")
    elif k.out.pretrains:
        why = "labels are not read; all images of the list are used for training"
        k.record("meta_type", REPLACED, "data.source=list, data.labels=false", why)
    elif kinds:
        k.record("meta_type", TAKEN, "data.source=list", "the format of each line is detected")
    _reader(k.inside("image_reader"), folder)
    k.fixed("image_type", ("pil",), "the type of all images")


def _strings(r: Keys, key: str) -> str | list[str] | None:
    """A string, or a list of several strings; a list of one string becomes that string."""
    found = r.value(key)
    texts = found if isinstance(found, list) else [found]
    if found is None:
        return None
    if not texts or not all(isinstance(text, str) for text in texts):
        r.refuse(key, "expected a string, or a list of strings")
        return None
    return texts[0] if len(texts) == 1 else texts


def _reader(r: Keys, folder: str) -> None:
    if r.kind(READERS, "image reader (for images on disk)") is None:
        return
    r.record("type", TAKEN, why="libjpeg-turbo or Pillow decodes the images")
    k = r.inside("kwargs")
    where = _strings(k, "image_dir")
    if where is not None:
        k.set("image_dir", f"data.{folder}", where)
    k.fixed("color_mode", ("RGB",), "images are read as RGB")
    k.ignore("the operating system caches files", "memcached")


def _batch(r: Keys, train: bool) -> None:
    r.fixed("type", ("base",), "there is one way to make batches")
    k, ranks = r.inside("kwargs"), r.out.ranks
    k.inside("sampler").read(SAMPLER)
    size = k.value("batch_size", "whole")
    if not train:
        k.ignore("test results do not depend on the batch size", "batch_size")
    elif size is not None:
        why = "for one process; torchrun gives each of several processes this number of images"
        why = f"{size} for each of {ranks} processes" if ranks > 1 else why
        k.set("batch_size", "batch_size", size * ranks, why)


def _loader(r: Keys) -> None:
    r.fixed("type", ("cls_base",), "there is one way to load images")
    k = r.inside("kwargs")
    if k.value("num_workers", "whole"):
        k.copy("num_workers", "data.workers", "whole", why="threads; in UP these were processes")
    else:
        k.ignore("at least one thread loads images; the default is one per core", "num_workers")
    k.value("pin_memory", "flag")
    k.record("pin_memory", UNUSED, why="memory is pinned where that helps")
    mixing = k.inside("batch_fn")
    kind = mixing.kind(("batch_cutmixup", "batch_mixup"), "batch_fn")
    if kind:
        mixing.record("type", TAKEN, "method.mixup, method.cutmix")
        read_mixing(mixing.inside("kwargs"), kind)
