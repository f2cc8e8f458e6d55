"""The methods by name. A new one is its file, a line here, a recipe and an oracle test."""

from tacit.methods.barlow_twins import BarlowTwins
from tacit.methods.byol import BYOL
from tacit.methods.dcl import DCL, DCLW
from tacit.methods.dino import DINO
from tacit.methods.ibot import IBOT
from tacit.methods.ijepa import IJEPA
from tacit.methods.lejepa import LeJEPA
from tacit.methods.mae import MAE
from tacit.methods.method import Method
from tacit.methods.moco import MoCoV1, MoCoV2
from tacit.methods.moco_v3 import MoCoV3
from tacit.methods.nnclr import NNCLR
from tacit.methods.simclr import SimCLR, SimCLRV2
from tacit.methods.simmim import SimMIM
from tacit.methods.simsiam import SimSiam
from tacit.methods.supcon import SupCon
from tacit.methods.supervised import Supervised
from tacit.methods.swav import SwAV
from tacit.methods.vicreg import VICReg

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
}
