"""Some images, each with its nearest neighbours."""

from typing import Any

import numpy as np
from markupsafe import Markup

from selfsight import randomness
from selfsight.batch import sides
from selfsight.report.page.panel import Panel, picture, render
from selfsight.report.page.seen import K, Seen
from selfsight.report.page.subject import Subject

QUERIES = 12
MISTAKES = 6  # of them, if there are as many of both kinds
SIDE = 112  # pixels of a picture at most
SMALL = 64  # pixels of a picture up to which eight stand in a line
QUALITY = 70


def nearest_panel(subject: Subject) -> Panel | None:
    """Twelve queries with their neighbours, mistakes first; None without images."""
    seen = subject.seen
    if seen is None or not seen.place.shape[1]:
        return None
    rows = chosen(seen)
    places = seen.place[rows].numpy()
    side = min(SIDE, max(sides(seen.size)))
    queries = list(seen.pictures(seen.images, rows, side))
    wanted, at = np.unique(places, return_inverse=True)
    bank = list(seen.pictures(seen.bank, wanted, side))
    names = seen.names(seen.bank, wanted)
    at = at.reshape(places.shape)
    found = []
    for n, row in enumerate(rows.tolist()):
        near = [
            _neighbour(seen, row, int(places[n, k]), float(seen.similarity[row, k]))
            | {"picture": _img(bank[at[n, k]], f"neighbour {k + 1}: {names[at[n, k]]}")}
            for k in range(places.shape[1])
        ]
        name = seen.names(seen.images, np.array([row]))[0]
        query = {"picture": _img(queries[n], f"query: {name}"), **_query(seen, row)}
        found.append({"query": query, "near": near})
    return Panel(
        "neighbours",
        "Nearest neighbours",
        render("neighbours.html", rows=found, large=side > SMALL),
        _note(seen),
    )


def chosen(seen: Seen) -> np.ndarray:
    """The rows of the queries: drawn by seed 0, half of them mistakes if there are as many."""
    order = randomness.permutation(len(seen.images), randomness.SUBSET)
    if seen.right is None:
        return order[:QUERIES]
    wrong, right = order[~seen.right[order]], order[seen.right[order]]
    count = max(MISTAKES, QUERIES - len(right))
    wrong = wrong[:count]
    return np.concatenate([wrong, right[: QUERIES - len(wrong)]])


def _img(pixels: np.ndarray, alt: str) -> Markup:
    return picture(pixels, alt, least=64, quality=QUALITY)


def _query(seen: Seen, row: int) -> dict[str, Any]:
    if seen.labels is None:
        return {"name": "", "taken": None}
    taken = None if seen.right[row] else seen.classes[int(seen.predicted[row])]
    return {"name": seen.classes[seen.labels[row]], "taken": taken}


def _neighbour(seen: Seen, row: int, place: int, similarity: float) -> dict[str, Any]:
    """Its similarity, class, and whether that is the query's: None without labels."""
    if seen.labels is None:
        return {"similarity": f"{similarity:.2f}", "name": "", "same": None}
    label = int(seen.bank.labels[place])
    same = label == int(seen.labels[row])
    return {"similarity": f"{similarity:.2f}", "name": seen.classes[label], "same": same}


def _note(seen: Seen) -> str:
    among = "training images" if seen.split == "test" else "other images"
    note = (
        f"On the left {'a test image' if seen.split == 'test' else 'an image'}, beside it the "
        f"{among} nearest to it by the cosine similarity of their features, the number below."
    )
    if seen.labels is None:
        return f"{note} Images are drawn by seed 0."
    return (
        f"{note} A solid frame: the same class; a dashed one: another. Mistakes of kNN (k = {K}) "
        f"come first."
    )
