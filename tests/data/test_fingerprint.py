"""What two processes compare of their data."""

import numpy as np

from selfsight.data.fingerprint import _spread, fingerprint


class Pixels:
    def __init__(self, images, labels, names="digit"):
        self.images, self.labels, self.names = images, np.array(labels), names
        self.classes = [str(n) for n in range(int(self.labels.max()) + 1)]

    def __len__(self):
        return len(self.images)

    def read(self, i):
        if self.images[i].max() == 255:
            raise OSError("broken")
        return self.images[i]

    def name(self, i):
        return f"{self.names} {i}"


def test_what_differs_is_named():
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    whole = fingerprint(Pixels(images, [0, 1, 2, 1, 0]))
    assert whole["images"] == 5
    assert whole == fingerprint(Pixels(images.copy(), [0, 1, 2, 1, 0]))
    for key, other in {
        "data's labels": Pixels(images, [0, 1, 2, 1, 1]),
        "data's names": Pixels(images, [0, 1, 2, 1, 0], "letter"),
        "data's contents": Pixels(images + 1, [0, 1, 2, 1, 0]),
    }.items():
        found = fingerprint(other)
        assert [name for name in whole if whole[name] != found[name]] == [key]
    fewer = fingerprint(Pixels(images[:4], [0, 1, 2, 1]))
    assert all(whole[name] != fewer[name] for name in whole)


def test_a_broken_image_is_no_error():
    images = np.full((3, 2, 2, 3), 255, np.uint8)
    assert fingerprint(Pixels(images, [0, 1, 0])) == fingerprint(Pixels(images, [0, 1, 0]))


def test_a_large_source_is_sampled_from_end_to_end():
    assert _spread(5, 16) == [0, 1, 2, 3, 4]
    rows = _spread(10**9, 16)
    assert (len(rows), rows[0], rows[-1]) == (16, 0, 10**9 - 1)
