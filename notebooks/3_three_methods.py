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
# # Three methods, with intervals
#
# One run of each says little: another seed moves the numbers. Here each method is pretrained with three seeds, and two methods are compared
# seed by seed, since runs with one seed share the order of images and the first weights.

# %%
import selfsight
from selfsight.report.statistics import interval, paired

epochs = 10
methods, seeds = ("simclr", "byol", "vicreg"), (0, 1, 2)

# %%
accuracy = {}
for method in methods:
    for seed in seeds:
        run = selfsight.pretrain(
            f"digits/{method}", run=f"runs/{method}-{seed}", seed=seed, epochs=epochs, quiet=True
        )
        record, untrained, *_ = selfsight.knn(run, pixels=False)
        accuracy.setdefault(method, {})[seed] = record.metrics["k20"]
        accuracy.setdefault("untrained", {})[seed] = untrained.metrics["k20"]

# %% [markdown]
# Mean and 95 % interval over the seeds (Student's t):

# %%
for name, by_seed in accuracy.items():
    mean, half = interval(list(by_seed.values()))
    print(f"{name:10} {100 * mean:5.1f} ± {100 * half:.1f}")

# %% [markdown]
# The difference of two methods, seed by seed, and what may be said of it:

# %%
for name in (*methods[1:], "untrained"):
    d = paired(accuracy["simclr"], accuracy[name])
    claim = "unknown" if d.half is None else f"± {100 * d.half:.1f}, p = {d.p:.2g}"
    print(f"simclr - {name:10} {100 * d.mean:+5.1f} {claim}")

# %% [markdown]
# The command for larger grids, with the same statistics corrected for many comparisons: `selfsight bench digits`.
