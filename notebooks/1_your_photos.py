# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your photos
#
# Pretrain an encoder on a folder of images without labels, look at what it is shown, and measure what it learned. Put the path of
# your own folder into `photos`. Here two photographs that come with scikit-learn are cut into 140 tiles.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

import selfsight

epochs = 20  # more learn more; 100 and more for a few thousand photographs
photos = Path("photos")

# %%
for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
    for row in range(0, 13, 2):
        for column in range(0, 20, 2):
            split = "test" if column % 5 == 4 else "train"
            file = photos / split / name / f"{row:02}-{column:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            top, left = 32 * row, 32 * column
            Image.fromarray(photograph[top : top + 32, left : left + 32]).save(file)

# %% [markdown]
# What the method is shown: each row is an image and its views. An encoder learns to recognise an image in all its views, so whatever
# changes between them is what it learns to ignore.

# %%
small = {"name": "resnet18", "small_images": True, "stem_stride": 2}  # for images of 32 px
config = selfsight.compose(
    "photos/simclr", [f"data.path={photos}", "views=simclr-small", "batch_size=32"]
).config
selfsight.draw_views(config, Path("views.png"), rows=4, epochs=2)
Image.open("views.png")

# %% [markdown]
# Pretraining. The same call again continues a run that was stopped; another configuration needs another folder.

# %%
run = selfsight.pretrain(
    "photos/simclr",
    run="runs/photos",
    data=photos,
    views="simclr-small",
    backbone=small,
    batch_size=32,
    epochs=epochs,
)
run

# %%
run.plot()

# %% [markdown]
# These tiles have labels, the names of their folders, so kNN can say what was learned: beside the same network before its first step, and
# beside the pixels themselves.

# %%
records = selfsight.knn(run)
{record.evaluated: round(100 * record.metrics["k20"], 1) for record in records}

# %% [markdown]
# The encoder gives a vector for any image.

# %%
encoder = run.encoder()
encoder.embed(sorted(photos.glob("test/*/*.png"))[:3]).shape
