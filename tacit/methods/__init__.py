"""The methods by name. A new one is its file, a line here, a recipe and an oracle test."""

from tacit.methods.byol import BYOL
from tacit.methods.method import Method
from tacit.methods.moco import MoCoV2
from tacit.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco_v2": MoCoV2,
    "byol": BYOL,
}
