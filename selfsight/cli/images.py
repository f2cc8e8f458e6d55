"""The argument that names images, of the commands that take them without a recipe."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.errors import UserError

if TYPE_CHECKING:
    from selfsight.data.config import DataConfig

ImageSource = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="a path of images (folder, list, parquet, shards, arrays, pack), or keys: "
        "data.source=torchvision:CIFAR10",
    ),
]


def data_config(arguments: list[str]) -> "DataConfig":
    """The keys `data.*` of a command that takes a path, such keys, or both."""
    from selfsight import config as layers
    from selfsight.data.config import DataConfig

    class Keys(layers.Config):
        data: DataConfig

    keys = [text for text in arguments if re.match(r"data\.\w+=", text)]
    paths = [text for text in arguments if text not in keys]
    if len(paths) > 1:
        raise UserError(f"'{paths[0]}' and '{paths[1]}': give one path, and keys like data.labels=")
    tree = layers.fold({"data": {"path": paths[0]} if paths else {}}, keys)
    return layers.validate(Keys, tree).data
