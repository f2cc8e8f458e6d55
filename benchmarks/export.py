"""How far an exported encoder's features are from its own on photographs that must be resized: with
the transform that each library has, and with the code of the model card that resizes as Selfsight
does. Prints one table; fails if the latter differs by more than 1e-4.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsight.data.sources.files import EXTENSIONS
from selfsight.encoders.encoder import load_encoder
from selfsight.export import runner
from selfsight.export.export import TARGETS, export
from selfsight.export.subject import open_subject
from selfsight.export.verify import TOLERANCE


def compare(run: Path, photographs: list[Image.Image]) -> bool:
    """Print the table; whether the code of the cards agrees."""
    subject, agrees = open_subject(run), True
    expected = load_encoder(run).embed(photographs).numpy()
    size = np.sqrt(np.square(expected).mean())
    print("| library | prepared by | difference, median | largest | least cosine |")
    print("|---|---|---|---|---|")
    for target in TARGETS.values():
        if target.refusal(subject):
            continue
        with tempfile.TemporaryDirectory() as place:
            export(run, target.name, Path(place) / "out")
            ways = {"its transform": target.code(subject)}
            if target.exact(subject):
                ways["the card's code"] = f"{target.code(subject)}\n{target.exact(subject)}"
            for way, code in ways.items():
                _, found = runner.run(code, str(Path(place) / "out"), photographs)
                far = np.abs(found[-1] - expected).max(1) / size
                both = torch.from_numpy(found[-1]), torch.from_numpy(expected)
                cosine = float(torch.cosine_similarity(*both).min())
                if not target.own_transform(subject):
                    way = "the card's code"
                print(
                    f"| {target.title} | {way} | {np.median(far):.1e} | {far.max():.1e} | "
                    f"{cosine:.4f} |"
                )
                agrees &= way == "its transform" or far.max() <= TOLERANCE
    return agrees


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("photographs", type=Path, help="a folder of RGB images")
    parser.add_argument("--count", type=int, default=24)
    given = parser.parse_args()
    paths = sorted(p for p in given.photographs.rglob("*") if p.suffix.lower() in EXTENSIONS)
    images = [Image.open(path).convert("RGB") for path in paths[: given.count]]
    sys.exit(0 if compare(given.run, images) else 1)
