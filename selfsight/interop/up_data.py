"""UP's `dataset`: list files, images, batches and loaders of the train and the test split."""

from selfsight.config import near
from selfsight.data.sources.open import several
from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Keys
from selfsight.interop.up_views import read_mixing, read_test_views, read_views

META_TYPES = ("imagenet", "custom_cls", "moco_imagenet", "moco_custom")
READERS = ("fs_pillow", "fs_opencv")


def read_dataset(r: Keys) -> None:
    """`dataset`, which may also be that of the training images alone, as on UP's page."""
    if "type" in r or "kwargs" in r:
        _images(r)
        return
    train, test = r.inside("train"), r.inside("test")
    _images(train.inside("dataset"))
    _batch(train.inside("batch_sampler"), train=True)
    _loader(train.inside("dataloader"))
    if r.d.pretrains:
        r.tell("test", NOTHING, why="pretraining measures on training images only")
    else:
        _test_images(test.inside("dataset"))
        _batch(test.inside("batch_sampler"), train=False)
        test.ignore("any batch size and number of workers tests alike", "dataloader")
    r.only("builder_type", ("base",), "the one way to build data", "only base is here")
    r.ignore("there is one train and one test split", "data_pool")


def _images(r: Keys) -> None:
    """`dataset.train.dataset`."""
    r.only("type", ("cls",), "images with labels", "expected cls")
    k = r.inside("kwargs")
    _common(k, "path", "image_dir")
    read_views(k)
    if k.number("fraction") == 1:
        k.tell("fraction", NOTHING, why="all images are used")
    elif r.d.pretrains:
        why = "the same images in every run, where a global generator drew them"
        k.carry("fraction", "data.fraction", why=why)
    else:
        why = "so much of each class, drawn by the seed and written to subset.txt"
        k.carry("fraction", "fraction", why=why)
    k.ignore("evaluates nothing on training images", "evaluator")


def _test_images(r: Keys) -> None:
    """`dataset.test.dataset` of an evaluation."""
    r.only("type", ("cls",), "images with labels", "expected cls")
    k = r.inside("kwargs")
    _common(k, "test_path", "test_image_dir")
    read_test_views(k)
    k.only("fraction", (1,), "all test images count", "all test images count; remove it")
    judge = k.inside("evaluator")
    judge.only("type", ("imagenet",), "top-1 and top-5", "only imagenet (top-1 and top-5)")
    judge.inside("kwargs").only(
        "topk",
        ([1, 5], [5, 1], [1], [5]),
        "top-1 and top-5 are reported",
        "top-1 and top-5 are what is reported; use [1, 5]",
    )


def _common(k: Keys, path: str, folder: str) -> None:
    """Where the list and its images are, of either split."""
    file = _texts(k, "meta_file")
    if file is not None:
        k.d.put("data.source", "list")
        # with labels and no test list a fifth of the images would be kept for testing
        k.d.put("data.labels", not k.d.pretrains)
        k.tell("meta_file", TAKEN, k.d.put(f"data.{path}", file))
    kinds = several(_texts(k, "meta_type") or [])
    unknown = [kind for kind in kinds if kind not in META_TYPES]
    if unknown:
        hint, known = near(unknown[0], META_TYPES), ", ".join(META_TYPES)
        k.refuse("meta_type", f"no such type of list files here.{hint} Known: {known}")
    elif k.d.pretrains:
        why = "labels are not read; all images of the list train"
        k.tell("meta_type", REPLACED, "data.source=list, data.labels=false", why)
    elif kinds:
        k.tell("meta_type", TAKEN, "data.source=list", "lines say themselves what they are")
    _reader(k.inside("image_reader"), folder)
    k.only("image_type", ("pil",), "as all images", "only pil is here")


def _texts(r: Keys, key: str) -> str | list[str] | None:
    """A text, or a list of several; a list of one is that one."""
    found = r.value(key)
    texts = found if isinstance(found, list) else [found]
    if found is None:
        return None
    if not texts or not all(isinstance(text, str) for text in texts):
        r.refuse(key, "expected a text, or a list of texts")
        return None
    return texts[0] if len(texts) == 1 else texts


def _reader(r: Keys, folder: str) -> None:
    if r.kind(READERS, "image reader (for images on disk)") is None:
        return
    r.tell("type", TAKEN, why="decoded by libjpeg-turbo or Pillow")
    k = r.inside("kwargs")
    where = _texts(k, "image_dir")
    if where is not None:
        k.tell("image_dir", TAKEN, k.d.put(f"data.{folder}", where))
    k.only("color_mode", ("RGB",), "images are read as RGB", "images are read as RGB here")
    k.ignore("files are cached by the operating system", "memcached")


def _batch(r: Keys, train: bool) -> None:
    r.only("type", ("base",), "the one way to make batches", "only base is here")
    k, d = r.inside("kwargs"), r.d
    sampler = k.inside("sampler")
    sampler.only("type", ("dist",), "each process has its part", "only dist is here")
    sampler.ignore("it has none here", "kwargs")
    size = k.whole("batch_size")
    if not train:
        k.tell("batch_size", NOTHING, why="any batch size tests alike")
    elif size is not None:
        by = d.put("batch_size", size * d.processes)
        why = "of the one process; of several, by torchrun, each has as many"
        if d.processes > 1:
            why = f"{size} of each of {d.processes} processes"
        k.tell("batch_size", REPLACED, by, why)


def _loader(r: Keys) -> None:
    r.only("type", ("cls_base",), "the one way to load images", "only cls_base is here")
    k = r.inside("kwargs")
    if k.whole("num_workers"):
        k.carry("num_workers", "data.workers", Keys.whole, why="threads, where it had processes")
    else:
        k.tell("num_workers", NOTHING, why="at least one thread loads; one for each core")
    k.flag("pin_memory")
    k.tell("pin_memory", NOTHING, why="memory is pinned where it helps")
    mixing = k.inside("batch_fn")
    kind = mixing.kind(("batch_cutmixup", "batch_mixup"), "batch_fn")
    if kind:
        mixing.tell("type", TAKEN, "method.mixup, method.cutmix")
        read_mixing(mixing.inside("kwargs"), kind)
