"""Tables of features as NumPy's .npz: an array for each column, nothing pickled.

The arrays are path, split, label (text; "" of an image without a label), embedding, x, y, neighbors
as neighbors_ids and neighbors_distances, and description (JSON text).
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 8192  # in memory at a time while they are written
TEXTS = ("path", "split", "label")


def require() -> None:
    """NumPy is always installed."""


def check_name(name: str) -> None:
    """Any name can be written."""


def description_file(path: Path) -> None:
    """There is none: the description is in the file itself."""


def write(path: Path, columns: dict[str, Any], description: str | None) -> None:
    """Write the arrays one after the other. The file says no time: equal tables are equal bytes."""
    arrays = {name: column for name, column in columns.items() if name != "neighbors"}
    for name in TEXTS:
        if name in arrays:
            texts = ["" if text is None else text for text in arrays[name]]
            arrays[name] = np.array(texts, np.str_)
    if "neighbors" in columns:
        ids, distances = columns["neighbors"]
        arrays |= {"neighbors_ids": ids, "neighbors_distances": distances}
    if description is not None:
        arrays["description"] = np.array(description)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write(file, array)


def _write(file: Any, array: np.ndarray) -> None:
    """As np.save, a part at a time."""
    if not array.ndim:
        np.lib.format.write_array(file, array, allow_pickle=False)
        return
    about = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**about, "shape": array.shape})
    for start in range(0, len(array), ROWS):
        file.write(np.ascontiguousarray(array[start : start + ROWS]).tobytes())


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The columns of a table, and its description if it has one. Raises: any exception."""
    with np.load(path, allow_pickle=False) as arrays:
        if isinstance(arrays, np.ndarray):
            raise ValueError("it is one array")
        missing = [name for name in ("path", "embedding") if name not in arrays.files]
        if missing:
            raise ValueError(f"no array '{missing[0]}' among {', '.join(arrays.files)}")
        columns: dict[str, Any] = {
            name: _texts(arrays[name], name) for name in TEXTS if name in arrays.files
        }
        columns["embedding"] = arrays["embedding"].astype(np.float32, copy=False)
        columns |= {name: arrays[name] for name in ("x", "y") if name in arrays.files}
        if "neighbors_ids" in arrays.files:
            ids = arrays["neighbors_ids"].astype(np.int64, copy=False)
            columns["neighbors"] = ids, arrays["neighbors_distances"]
        return columns, str(arrays["description"]) if "description" in arrays.files else None


def read_description(path: Path) -> str | None:
    """The text of the description alone; None of another file. Raises: any exception."""
    with np.load(path, allow_pickle=False) as arrays:
        return str(arrays["description"]) if "description" in arrays.files else None


def _texts(array: np.ndarray, name: str) -> list[str | None]:
    """Numbers, as of classes, become text; bytes are UTF-8."""
    if array.ndim != 1:
        raise ValueError(f"'{name}' has {array.ndim} dimensions and not one")
    texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(np.str_)
    values = texts.tolist()
    return [value or None for value in values] if name == "label" else values
