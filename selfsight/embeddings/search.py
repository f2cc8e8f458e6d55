"""The rows of a table that are most like given images."""

import filecmp
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from selfsight.batch import sides
from selfsight.config import Config, validate
from selfsight.data.config import DataConfig
from selfsight.embeddings.index import Index, Kind, check_k
from selfsight.embeddings.outputs import about
from selfsight.embeddings.table import Table, read_table
from selfsight.encoders.dense import LayerFeatures
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import EvaluationTarget, open_target
from selfsight.views.recipe import Size

NUMBER = re.compile(r"\d+", re.ASCII)
KEY = re.compile(r"(backbone\.\w+|data\.\w+|image_size|format)(\.\w+)*=")


@dataclass(frozen=True)
class Answer:
    """The rows that are most like a query.

    Attributes:
        query: as it was given: a path, or the number of a row.
        row: of the query itself, if it is in the table; it is not among `rows`.
        rows: nearest first, and their similarities.
    """

    query: str
    row: int | None
    rows: list[int]
    similarities: list[float]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        recall: the share of neighbours that the index finds (measured), or None if it is exact.
    """

    table: Table
    answers: list[Answer]
    recall: float | None = None


def search(
    where: str | Path,
    queries: Sequence[str],
    table_file: str | Path,
    k: int = 10,
    kind: Kind = "exact",
    device: torch.device | None = None,
) -> Found:
    """The k rows of a table that are most like each query.

    A query is the number of a row, from 0; or a path in the table; or an image file, whose features
    the encoder makes. A file whose name is a number is given as `./5`. The query itself is not
    counted: the row of this number or path, or else the first row found whose file has the same
    bytes.

    Args:
        where: the encoder that made the table, as `open_target` takes it; the keys that describe
            another library's checkpoint (backbone.name=...) may be among the queries.
    Raises: UserError for another encoder, for a query that is none of these, or for a k that is not
        from 1 to the number of rows.
    """
    keys = [text for text in queries if KEY.match(text)]
    queries = [text for text in queries if text not in keys]
    if not queries:
        raise UserError("search: give an image: a file, a path in the table, or a number of a row")
    table = read_table(table_file)
    check_k(k, len(table))
    rows = rows_of(table, queries)
    target = open_target(where, keys, None)
    _check_keys(keys, target)
    _check_made_by(target, where, table, table_file)
    files = [query for query, row in zip(queries, rows, strict=True) if row is None]
    made = iter(_embedded(files, target, table, table_file))
    features = torch.stack(
        [next(made) if row is None else torch.from_numpy(table.features[row]) for row in rows]
    )
    index = Index(table.features, kind, device)
    similarities, places = index.search(features, min(k + 1, len(table)))
    answers = [
        _answer(table, query, row, places[n].tolist(), similarities[n].tolist(), k)
        for n, (query, row) in enumerate(zip(queries, rows, strict=True))
    ]
    return Found(table, answers, None if kind in ("exact", "faiss") else index.recall(k))


def rows_of(table: Table, queries: Sequence[str]) -> list[int | None]:
    """The row that each query names by its number or its path, of several the first; None for an
    image file that the table does not have.

    Raises: UserError for a number that is too large, or if there is no such file.

    >>> import numpy as np
    >>> rows_of(Table(["a.jpg", "b.jpg"], np.zeros((2, 3), np.float32)), ["b.jpg", "0"])
    [1, 0]
    """
    paths = [query for query in queries if not NUMBER.fullmatch(query)]
    files = {os.path.basename(path) for path in paths if os.path.isfile(path)}
    wanted, places = set(paths), dict[str, int]()
    for row, path in enumerate(table.paths):  # once for all queries: there may be millions of rows
        if path in wanted:
            places.setdefault(path, row)
        if files and os.path.basename(path) in files:
            places.setdefault(os.path.realpath(path), row)
    return [_row_of(query, table, places) for query in queries]


def _row_of(query: str, table: Table, places: dict[str, int]) -> int | None:
    last = len(table) - 1
    if NUMBER.fullmatch(query):
        if int(query) > last:
            raise UserError(
                f"'{query}': the table has rows 0 to {last}; a file of this name is given as "
                f"'./{query}'"
            )
        return int(query)
    row = places.get(query, places.get(os.path.realpath(query)))
    if row is None and not os.path.isfile(query):
        raise UserError(
            f"'{query}': is no path in the table and no image file; give a path, or the number of "
            f"a row from 0 to {last}"
        )
    return row


def _check_keys(keys: list[str], target: EvaluationTarget) -> None:
    """Other keys than those of an encoder's code are of files that do not describe themselves."""
    more = [key for key in keys if not key.startswith("backbone.")]
    if more and "mean" in target.encoder.description:
        raise UserError(
            f"'{more[0]}': the table says how images are prepared, and the encoder's file what it "
            f"is; leave it out"
        )


def _check_made_by(
    target: EvaluationTarget, where: str | Path, table: Table, file: str | Path
) -> None:
    described = table.description
    if described is not None and described["weights_sha256"] != target.weights_sha256:
        raise UserError(
            f"'{file}': another encoder than '{where}' made these features; give that one, or make "
            f"the table anew: selfsight embed {where} -o {file}"
        )


def _embedded(
    files: list[str], target: EvaluationTarget, table: Table, file: str | Path
) -> Sequence[Tensor]:
    """Features of image files, prepared as the images of the table were."""
    if not files:
        return []
    if table.description is None:
        raise UserError(
            f"'{file}': does not say which encoder made it, so '{files[0]}' cannot be compared "
            f"with it; give the number of a row or a path in the table"
        )
    try:
        encoder = _prepared(target, table.description)
    except UserError as error:
        raise UserError(f"'{file}': its description does not fit: {error}") from None
    if encoder.num_features != table.width:
        raise UserError(
            f"'{file}': its features are {table.width} wide, and those of the encoder "
            f"{encoder.num_features}; give the number of a row or a path in the table"
        )
    half = table.description.get("precision") == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return list(encoder.embed(files))


class _Preparation(Config):
    """What a table says of how its images were shown to the encoder."""

    model_config = ConfigDict(extra="ignore")
    image_size: Size
    resize: Resize = "crop"
    data: DataConfig
    layers: list[str] | None = None


def _prepared(target: EvaluationTarget, description: dict[str, Any]) -> Encoder:
    """The encoder with its images prepared as those of the table were."""
    how = validate(_Preparation, description)
    backbone = target.encoder.build()
    if how.layers is not None:
        backbone = LayerFeatures(backbone, how.layers, how.data.channels, sides(how.image_size))
    shown = {"image_size": how.image_size, "resize": how.resize, "channels": how.data.channels}
    shown |= {"mean": how.data.mean, "std": how.data.std, "data": how.data.model_dump()}
    return Encoder(backbone, {**target.encoder.description, **shown})


def _answer(
    table: Table, query: str, row: int | None, rows: list[int], similarities: list[float], k: int
) -> Answer:
    """Without the query itself, and without places where an approximate index found nothing."""
    if row is None:
        row = next((other for other in rows if _same_bytes(query, table, other)), None)
    pairs = [(r, s) for r, s in zip(rows, similarities, strict=True) if r >= 0 and r != row][:k]
    return Answer(query, row, [r for r, _ in pairs], [s for _, s in pairs])


def _same_bytes(query: str, table: Table, row: int) -> bool:
    if row < 0:
        return False
    try:
        return filecmp.cmp(query, table.paths[row], shallow=False)
    except (OSError, ValueError):  # the path of the row is no file on this machine
        return False


def as_json(found: Found) -> list[dict[str, Any]]:
    """The answers for programs: row, path, label, split and similarity of each neighbour."""
    return [
        {
            "query": answer.query,
            "row": answer.row,
            "neighbours": [
                {**about(found.table, row), "similarity": round(similarity, 6)}
                for row, similarity in zip(answer.rows, answer.similarities, strict=True)
            ],
        }
        for answer in found.answers
    ]
