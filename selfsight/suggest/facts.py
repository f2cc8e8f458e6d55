"""What a recipe is chosen by: what was found in the images, and on the machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageFacts:
    """What was found in the images of the training split, unless an attribute says another.

    Attributes:
        count: of all images; looked: images that the other numbers were found in.
        channels: 1 of gray images, 3 of colours, or the number of bands.
        deep: values have more than 8 bits.
        shorter: median of the shorter sides, in pixels; ratio: median of longer / shorter side.
        smallest, largest: of all sides, in pixels.
        usual_colours: mean and standard deviation are near those of photographs (ImageNet's).
        classes: their number, 0 without labels.
        least, most: images of the smallest and of the largest class; 0 without labels.
        broken: images that cannot be decoded; example: one of them, with the reason.
        repeated: images that are equal, byte for byte, to an earlier one.
        test: images of the test split, 0 without one; own_test: it is there, and not a part of the
            training images that is held out.
        shared: test images that are among the training images.
        decoded: reading an image decodes nothing, as of arrays and raw packs, or is a pack's.
    """

    count: int
    looked: int
    channels: int = 3
    deep: bool = False
    shorter: int = 224
    ratio: float = 1.0
    smallest: int = 224
    largest: int = 224
    usual_colours: bool = True
    classes: int = 0
    least: int = 0
    most: int = 0
    broken: int = 0
    example: str = ""
    repeated: int = 0
    test: int = 0
    own_test: bool = False
    shared: int = 0
    decoded: bool = False


@dataclass(frozen=True)
class Machine:
    """What was found on the machine.

    Attributes:
        kind: cpu, cuda or mps; name: of the device.
        memory: bytes that the device has; a CPU has the machine's.
        cores: of the CPU that this process may use.
        bf16: the device multiplies bf16 natively.
        disk: free bytes where runs are written.
    """

    kind: str
    name: str
    memory: float
    cores: int
    bf16: bool
    disk: float

    @property
    def is_gpu(self) -> bool:
        return self.kind != "cpu"


@dataclass(frozen=True)
class Pace:
    """What some real steps of a configuration took.

    Attributes:
        rate: images a second; steps: that it was measured over.
        slowest: the part of a step that took longest, as `selfsight profile` names it.
        waiting: the share of a step in which the device waits for images.
    """

    rate: float
    steps: int
    slowest: str
    waiting: float
