"""The methods by name. A new method of the package needs its file, a line here, a recipe and an
oracle test; one of your own needs only its file."""

from selfsight.methods.barlow_twins import BarlowTwins
from selfsight.methods.byol import BYOL
from selfsight.methods.dcl import DCL, DCLW
from selfsight.methods.dino import DINO
from selfsight.methods.dinov2 import DINOv2
from selfsight.methods.dinov3 import DINOv3
from selfsight.methods.distill import Distill
from selfsight.methods.ibot import IBOT
from selfsight.methods.ijepa import IJEPA
from selfsight.methods.lejepa import LeJEPA
from selfsight.methods.mae import MAE
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.moco import MoCoV1, MoCoV2
from selfsight.methods.moco_v3 import MoCoV3
from selfsight.methods.nnclr import NNCLR
from selfsight.methods.simclr import SimCLR, SimCLRV2
from selfsight.methods.simmim import SimMIM
from selfsight.methods.simsiam import SimSiam
from selfsight.methods.supcon import SupCon
from selfsight.methods.supervised import Supervised
from selfsight.methods.swav import SwAV
from selfsight.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "simclr_v2": SimCLRV2,
    "moco_v1": MoCoV1,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "nnclr": NNCLR,
    "mae": MAE,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "dcl": DCL,
    "dclw": DCLW,
    "supcon": SupCon,
    "supervised": Supervised,
    "simmim": SimMIM,
    "ijepa": IJEPA,
    "ibot": IBOT,
    "lejepa": LeJEPA,
    "distill": Distill,
    "dinov2": DINOv2,
    "dinov3": DINOv3,
}
__all__ = ["METHODS", "Backbone", "Batch", "Method", "MethodConfig", "Output"]
__all__ += [method.__name__ for method in METHODS.values()]
