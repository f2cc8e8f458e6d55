"""Search by cosine in a table of features, and all pairs of it. Prints one table.

Search     `Index.search` of normalised random rows, exactly, against faiss's flat index
           (IndexFlatIP) and scikit-learn's NearestNeighbors (brute force, Euclidean distance of
           rows of length 1, which has the same order). In turns; what is compared is the ratio of
           each pair. Building the index is timed once. All must find the same rows.
Pairs      `near_duplicates` of fewer rows. Time grows with their square: what a million rows would
           take is that law, not a measurement.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import faiss
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.common import machine, start
from selfsight.embeddings.duplicates import near_duplicates
from selfsight.embeddings.index import Index
from selfsight.evaluate.knn import unit_rows

MILLION = 1_000_000


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def search(options: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, options.width, generator=generator)
    q = unit_rows(torch.randn(options.queries, options.width, generator=generator))
    index: list[Index] = []
    building = seconds(lambda: index.append(Index(x)))
    x = unit_rows(x)
    flat = faiss.IndexFlatIP(options.width)
    flat.add(x.numpy())
    brute = NearestNeighbors(algorithm="brute").fit(x.numpy())
    ways = {
        "selfsight": lambda: index[0].search(q, options.k)[1].numpy(),
        "faiss flat": lambda: flat.search(q.numpy(), options.k)[1],
        "scikit-learn": lambda: brute.kneighbors(q.numpy(), options.k, return_distance=False),
    }
    found = {name: np.sort(way(), axis=1) for name, way in ways.items()}  # and warms up
    agree = min(float((rows == found["selfsight"]).mean()) for rows in found.values())
    taken = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    print(f"index of {options.rows:,} x {options.width}: {building:.2f} s; equal rows {agree:.4%}")
    print("\n| search | seconds | selfsight / it (least to greatest) |\n|---|---|---|")
    for name, times in taken.items():
        ratios = sorted(a / b for a, b in zip(taken["selfsight"], times, strict=True))
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n={len(ratios)})"
        print(f"| {name} | {median(times):.3f} | {spread} |")


def pairs(options: argparse.Namespace) -> None:
    x = torch.randn(options.pairs, options.width, generator=torch.Generator().manual_seed(0))
    taken = seconds(lambda: near_duplicates(x, 0.96))
    hours = taken * (MILLION / options.pairs) ** 2 / 3600
    print(
        f"\nall pairs of {options.pairs:,} x {options.width}: {taken:.1f} s; of a million, "
        f"extrapolated: {hours:.1f} h"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=50_000, help="rows whose pairs are compared")
    options = parser.parse_args()
    print(machine(), flush=True)
    search(options)
    pairs(options)


if __name__ == "__main__":
    start(main)
