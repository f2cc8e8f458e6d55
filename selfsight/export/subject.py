"""What is exported: the encoder of a finished run, with what its images and results are."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ConfigDict, Field

from selfsight.batch import sides
from selfsight.config import Config, validate
from selfsight.data.config import DataConfig
from selfsight.encoders.artifact import Network, encoder_file, is_ours
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.evaluate.protocols.target import open_target
from selfsight.export.seen import Pictures, pictures_of
from selfsight.files import read_json


class _Method(Config):
    model_config = ConfigDict(extra="ignore")
    name: str


class _Trained(Config):
    model_config = ConfigDict(extra="ignore")
    images: int | None = None
    steps: int | None = None
    weights_sha256: str | None = None
    teacher_sha256: str | None = None


class _Told(Config):
    """What a model card and its code say of an encoder, beside what builds it."""

    model_config = ConfigDict(extra="ignore")
    method: _Method
    data: DataConfig
    pretrained_on: _Trained = Field(_Trained())


@dataclass(frozen=True)
class Subject:
    """An encoder on its way to another library.

    Attributes:
        encoder: frozen, as `load_encoder` gives it; network: its weights and description.
        pictures: the images that the export is for. Of photographs, which have a side of more than
            96 pixels, an evaluation shows 0.875 of the shorter side; of small images all of it.
        why: what decided on these.
        records: of results.json; cost: of the pretraining, as cost.json has it.
    """

    encoder: Encoder
    network: Network
    pictures: Pictures
    records: list[dict[str, Any]]
    cost: dict[str, Any]
    why: str = ""

    @property
    def description(self) -> dict[str, Any]:
        return self.network.description

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what the encoder sees."""
        return sides(self.network.image_size)

    @property
    def channels(self) -> int:
        return self.network.channels

    @property
    def bits(self) -> int:
        return self.description["data"].get("bits") or 8

    @property
    def range(self) -> tuple[float, float] | None:
        """The values that became the least and the most, of images with more than 8 bits."""
        found = self.description["data"].get("range")
        return (found[0], found[1]) if isinstance(found, (list, tuple)) else None

    @property
    def resize(self) -> Resize:
        return self.network.resize

    @property
    def sha256(self) -> str:
        """The hash of the weights, which results.json names an encoder by."""
        return self.network.weights_sha256()

    @property
    def model(self) -> str:
        """The name of timm's model, or FILE.py:NAME without the folders."""
        return Path(self.description["backbone"]["name"]).name

    @property
    def takes_pil(self) -> bool:
        """Whether its images are gray or RGB of 8 bits, which a PIL image holds."""
        return self.channels in (1, 3) and self.bits == 8


def open_subject(
    where: str | Path, keys: Iterable[str] = (), pictures: Pictures | None = None
) -> Subject:
    """The encoder of a finished run's folder, or of an encoder.safetensors.

    Args:
        keys: `backbone.name=FILE.py:NAME`, for an encoder of the user's own code.
        pictures: default: as the images of the run are (see `pictures_of`).
    Raises: UserError if the run is not finished, or if that is no encoder that Selfsight wrote.
    """
    if pictures not in (None, *get_args(Pictures)):
        raise UserError(f"--images {pictures}: is neither {' nor '.join(get_args(Pictures))}")
    if not Path(where).exists():
        raise UserError(f"'{where}': no such run folder or encoder.safetensors")
    path = encoder_file(where)
    if not is_ours(path):
        raise UserError(
            f"'{where}': holds no encoder that Selfsight wrote; give the folder of a finished run "
            f"or its encoder.safetensors"
        )
    target = open_target(where, list(keys), None)
    network = target.encoder
    try:
        validate(_Told, network.description)
    except UserError as error:
        reason = "; ".join(str(error).splitlines())[:500]
        raise UserError(f"'{path}': its description is not valid: {reason}") from None
    encoder = Encoder(network.build(), network.description)
    pictures, why = (pictures, f"--images {pictures}") if pictures else pictures_of(target)
    cost = target.home and target.home / "cost.json"
    costs = read_json(cost) if cost and cost.is_file() else {}
    return Subject(encoder, network, pictures, read_results(target.folder), costs, why)
