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
# # Embeddings, neighbours, duplicates
#
# What an encoder is for: similar images have similar vectors.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import selfsight
from selfsight.evaluate.knn import neighbours

epochs = 20
pixels, labels = load_digits(return_X_y=True)
images = (pixels * 15.9).astype(np.uint8).reshape(-1, 8, 8)

# %%
run = selfsight.pretrain("digits/simclr", run="runs/digits", epochs=epochs)
features = run.encoder().embed(list(images[1437:]))  # the test images, (360, D)
features.shape

# %% [markdown]
# In two dimensions: the first two principal components, a colour for each digit. No label was used.

# %%
centred = features - features.mean(0)
_, _, axes = torch.linalg.svd(centred, full_matrices=False)
flat = centred @ axes[:2].T
plt.figure(figsize=(5, 4))
plt.scatter(*flat.T, c=labels[1437:], cmap="tab10", s=9)
plt.colorbar(label="digit")

# %% [markdown]
# The six nearest neighbours of some images, by cosine similarity:

# %%
similarity, place = neighbours(features, features, k=7)
figure, rows = plt.subplots(4, 7, figsize=(7, 4))
for query, row in zip((0, 50, 100, 150), rows, strict=True):
    for axes_, i in zip(row, place[query].tolist(), strict=True):
        axes_.imshow(images[1437 + i], cmap="gray_r")
        axes_.axis("off")

# %% [markdown]
# Near duplicates are pairs of almost the same vector. A high threshold finds copies, a lower one similar images:

# %%
pairs = [
    (query, int(other), float(cosine))
    for query in range(len(features))
    for other, cosine in zip(place[query, 1:2], similarity[query, 1:2], strict=True)
    if query < other
]
print(sum(cosine > 0.99 for *_, cosine in pairs), "pairs above 0.99; the nearest three:")
for query, other, cosine in sorted(pairs, key=lambda pair: -pair[2])[:3]:
    print(f"images {query} and {other}: cosine {cosine:.4f}")
