"""Data sets of Hugging Face's `datasets` library."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from selfsight.data.names import NameBlock, numbered
from selfsight.data.source import TEST_NAMES, TRAIN_NAMES, BadImage, first_line
from selfsight.data.sources.parquet import LABELS, as_labels, library
from selfsight.errors import UserError

_datasets = partial(library, "huggingface", "datasets")


class HuggingFace:
    """One split of a data set of the `datasets` library, which maps its files into memory.

    Args:
        data: a `datasets.Dataset`, or a folder that its `save_to_disk` has written.
    """

    def __init__(self, data: Any, labels: bool = True) -> None:
        datasets = _datasets()
        if isinstance(data, Path):
            self._where, data = f"data.path={data}", _load_saved(data)
        else:
            self._where = f"data.source=huggingface:{data.info.dataset_name} {data.split}"
        kinds = data.features
        image = next((n for n, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
        if image is None or not len(data):
            missing = "no rows" if image else f"no image column among {', '.join(kinds)}"
            raise UserError(f"{self._where}: {missing}")
        rows = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._rows = rows.with_format("arrow")
        named = [n for n, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        column = next((name for name in (*LABELS, *named) if name in kinds), None)
        self.classes = self.labels = None
        if labels and column:
            table = data.select_columns([column]).with_format("arrow")[:]
            names = getattr(kinds[column], "names", None)
            self.classes, self.labels = as_labels(table.column(0), names, self._where)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes:
        value = self._rows[i].column(0)[0].as_py()
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise BadImage(self.name(i), "its bytes are missing in the data set")
        return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]

    def name(self, i: int) -> str:
        return f"{self._where.partition('=')[2]} row {i}"

    def name_blocks(self) -> Iterator[NameBlock]:
        return numbered(f"{self._where.partition('=')[2]} row", len(self))


def hub_splits(name: str, folder: str | None, labels: bool = True) -> tuple[Any, Any | None]:
    """The train and the test split of a data set of the hub; the second is None without one.

    Args:
        name: ORGANISATION/NAME on the hub, optionally followed by /CONFIGURATION and by :SPLIT, the
            split to train on.
        folder: the library's cache for this data set; None: its default cache.
        labels: prefer a test split with labels, since some data sets hide those of one split.
    Raises: UserError if the data set is not available.
    """
    name, *own = name.split(":", 1)
    splits = _load_hub(name, folder)
    train = [splits[n] for n in (*TRAIN_NAMES, *splits) if n in splits]
    if own:
        train = [_load_hub(name, folder, own[0])]
    elif not any(n in splits for n in TRAIN_NAMES) and len(splits) > 1:
        raise UserError(
            f"data.source=huggingface:{name}: none of its splits {', '.join(splits)} is called "
            f"train; name one: huggingface:{name}:{next(iter(splits))}"
        )
    tests = [splits[n] for n in TEST_NAMES if n in splits]
    labelled = [s for s in tests if HuggingFace(s, labels).labels is not None]
    return train[0], next(iter(labelled + tests), None)


@cache
def _load_hub(name: str, folder: str | None, split: str | None = None) -> Any:
    """The DatasetDict of a data set, or the Dataset of one split."""
    datasets = _datasets()
    path, configuration = name, None
    if name.count("/") == 2:
        path, _, configuration = name.rpartition("/")
    where = folder and str(Path(folder).expanduser())
    try:
        return datasets.load_dataset(path, configuration, split=split, cache_dir=where)
    except Exception as error:  # downloads raise too many kinds of exceptions to list
        asked = f"huggingface:{name}" + (f":{split}" if split else "")
        raise UserError(f"data.source={asked}: {first_line(error)}") from None


def _load_saved(path: Path) -> Any:
    try:
        data = _datasets().load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"data.path={path}: {first_line(error)}") from None
    if isinstance(data, dict):
        raise UserError(
            f"data.path={path}: none of its splits {', '.join(data)} is called train; name one: "
            f"data.path={path / next(iter(data))}"
        )
    return data
