"""UP's `dataset`: list files, images, batches and loaders of the train and the test split."""

from tacit.config import near
from tacit.data.sources import several
from tacit.dialects.report import Reader
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    anything,
    choose,
    flag,
    ignore,
    number,
    only,
    text,
    value,
    whole,
)
from tacit.dialects.up_views import read_mixing, read_test_views, read_views

META_TYPES = ("imagenet", "custom_cls", "moco_imagenet", "moco_custom")
READERS = ("fs_pillow", "fs_opencv")
TEST_ONCE = "the test images are classified once, at the end"


def read_dataset(r: Reader, d: Draft, two: bool) -> None:
    """`dataset`, which may also be that of the training images alone, as on UP's page.

    Args:
        two: the method compares two views of an image.
    """
    if "type" in r or "kwargs" in r:
        _images(r, d, two)
        return
    train, test = r.inside("train"), r.inside("test")
    _images(train.inside("dataset"), d, two)
    _batch(train.inside("batch_sampler"), d, train=True)
    _loader(train.inside("dataloader"), d)
    if d.pretrains:
        if test:
            r.tell("test", NOTHING, why="pretraining measures on training images only")
    else:
        _test_images(test.inside("dataset"), d)
        _batch(test.inside("batch_sampler"), d, train=False)
        ignore(test, "any batch size and number of workers tests alike", "dataloader")
    only(r, "builder_type", ("base",), "the one way to build data", "only base is here")
    ignore(r, "there is one train and one test split", "data_pool")


def _images(r: Reader, d: Draft, two: bool) -> None:
    """`dataset.train.dataset`."""
    _is_cls(r)
    k = r.inside("kwargs")
    _common(k, d, "path", "image_dir")
    read_views(k, d, two)
    share = number(k, "fraction")
    if share == 1:
        k.tell("fraction", NOTHING, why="all images are used")
    elif share is not None and not d.pretrains:
        why = "so much of each class, drawn by the seed and written to subset.txt"
        k.tell("fraction", REPLACED, d.put("fraction", share), why)
    elif share is not None:
        why = "the same images in every run, where a global generator drew them"
        k.tell("fraction", REPLACED, d.put("data.fraction", share), why)
    ignore(k, "evaluates nothing on training images", "evaluator")


def _test_images(r: Reader, d: Draft) -> None:
    """`dataset.test.dataset` of an evaluation."""
    if not r:
        return
    _is_cls(r)
    k = r.inside("kwargs")
    _common(k, d, "test_path", "test_image_dir")
    read_test_views(k, d)
    only(k, "fraction", (1,), "all test images count", "all test images count; remove it")
    judge = k.inside("evaluator")
    only(judge, "type", ("imagenet",), "top-1 and top-5", "only imagenet (top-1 and top-5)")
    _topk(judge.inside("kwargs"))


def _topk(r: Reader) -> None:
    asked = anything(r, "topk")
    if asked is None:
        return
    if isinstance(asked, list) and all(k in (1, 5) for k in asked):
        r.tell("topk", TAKEN, why="top-1 and top-5 are reported")
    else:
        r.refuse("topk", "top-1 and top-5 are what is reported; use [1, 5]")


def _is_cls(r: Reader) -> None:
    only(r, "type", ("cls",), "images with labels", "expected cls")


def _common(k: Reader, d: Draft, path: str, folder: str) -> None:
    """Where the list and its images are, of either split."""
    file = _texts(k, "meta_file")
    if file is not None:
        d.put("data.source", "list")
        # with labels and no test list a fifth of the images would be kept for testing
        d.put("data.labels", not d.pretrains)
        k.tell("meta_file", TAKEN, d.put(f"data.{path}", file))
    kinds = _texts(k, "meta_type")
    if kinds is not None:
        unknown = [kind for kind in several(kinds) if kind not in META_TYPES]
        if unknown:
            hint = near(unknown[0], META_TYPES)
            known = ", ".join(META_TYPES)
            k.refuse("meta_type", f"no such type of list files here.{hint} Known: {known}")
        elif d.pretrains:
            why = "labels are not read; all images of the list train"
            k.tell("meta_type", REPLACED, "data.source=list, data.labels=false", why)
        else:
            k.tell("meta_type", TAKEN, "data.source=list", "lines say themselves what they are")
    _reader(k.inside("image_reader"), d, folder)
    only(k, "image_type", ("pil",), "as all images", "only pil is here")


def _texts(r: Reader, key: str) -> str | list[str] | None:
    """A text, or a list of several; a list of one is that one."""
    found = value(r, key)
    texts = found if isinstance(found, list) else [found]
    if found is None:
        return None
    if not texts or not all(isinstance(text, str) for text in texts):
        r.refuse(key, "expected a text, or a list of texts")
        return None
    return texts[0] if len(texts) == 1 else texts


def _reader(r: Reader, d: Draft, folder: str) -> None:
    kind = text(r, "type")
    if kind in READERS:
        r.tell("type", TAKEN, why="decoded by libjpeg-turbo or Pillow")
    elif kind is not None:
        choose(r, "type", READERS, "image reader (for images on disk)")
    k = r.inside("kwargs")
    where = _texts(k, "image_dir")
    if where is not None:
        k.tell("image_dir", TAKEN, d.put(f"data.{folder}", where))
    only(k, "color_mode", ("RGB",), "images are read as RGB", "images are read as RGB here")
    ignore(k, "files are cached by the operating system", "memcached")


def _batch(r: Reader, d: Draft, train: bool) -> None:
    only(r, "type", ("base",), "the one way to make batches", "only base is here")
    k = r.inside("kwargs")
    sampler = k.inside("sampler")
    only(sampler, "type", ("dist",), "each process has its part", "only dist is here")
    ignore(sampler, "it has none here", "kwargs")
    size = whole(k, "batch_size")
    if not train:
        k.tell("batch_size", NOTHING, why="any batch size tests alike")
    elif size is not None:
        by = d.put("batch_size", size * d.processes)
        if d.processes == 1:
            why = "of the one process; of several, by torchrun, each has as many"
        else:
            why = f"{size} of each of {d.processes} processes"
        k.tell("batch_size", REPLACED, by, why)


def _loader(r: Reader, d: Draft) -> None:
    only(r, "type", ("cls_base",), "the one way to load images", "only cls_base is here")
    k = r.inside("kwargs")
    workers = whole(k, "num_workers")
    if workers:
        why = "threads, where it had processes"
        k.tell("num_workers", REPLACED, d.put("data.workers", workers), why)
    else:
        k.tell("num_workers", NOTHING, why="at least one thread loads; one for each core")
    flag(k, "pin_memory")
    k.tell("pin_memory", NOTHING, why="memory is pinned where it helps")
    mixing = k.inside("batch_fn")
    kind = choose(mixing, "type", ("batch_cutmixup", "batch_mixup"), "batch_fn")
    if kind:
        mixing.tell("type", TAKEN, "method.mixup, method.cutmix")
        read_mixing(mixing.inside("kwargs"), d, kind)
    elif mixing:
        ignore(mixing, "of a batch_fn that is refused", "kwargs")
