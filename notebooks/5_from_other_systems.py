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
# # From Lightweight-SSL or United Perception to here
#
# `selfsight run FILE` runs their configuration files as they are; `selfsight convert FILE` says what becomes of each key. The same from Python:

# %%
from pathlib import Path

import selfsight

# %%
ini = Path("pretrain/simclr.ini")
ini.parent.mkdir(exist_ok=True)
ini.write_text("""\
dataset = custom@str
data_dir = photos@str
ssl_method = simclr@str
backbone = resnet18@str
batch_size = 32@int
epochs = 1@int
[custom_ds_cfg]
crop_size = 32@int
mean = [0.5, 0.5, 0.5]@list
std = [0.25, 0.25, 0.25]@list
[ssl_args]
lr = 0.03@float
""")
converted = selfsight.convert(ini)
for entry in converted.entries:
    print(f"{entry.key:22} {entry.fate.value:14} {entry.by:34} {entry.why}"[:150])

# %% [markdown]
# The converted configuration is an ordinary one:

# %%
converted.tree

# %% [markdown]
# A file of United Perception's self-supervision task:

# %%
up = Path("simclr.yaml")
up.write_text("""\
runtime:
  task_names: ssl
  random_seed: 131
dataset:
  train:
    dataset:
      type: imagenet
      kwargs:
        meta_file: list.txt
        image_reader: {type: fs_pillow, kwargs: {image_dir: photos, color_mode: RGB}}
        transformer: [{type: simclr}]
    batch_sampler: {type: base, kwargs: {batch_size: 32}}
    dataloader: {type: base, kwargs: {num_workers: 4}}
""")
try:
    selfsight.convert(up)
except selfsight.UserError as error:  # what is missing is said at once, line by line
    print("\\n".join(str(error).splitlines()[:4]))

# %% [markdown]
# Their checkpoints are measured as they are, loaded strictly: `selfsight knn CHECKPOINT backbone.name=resnet50 data.path=photos`.
