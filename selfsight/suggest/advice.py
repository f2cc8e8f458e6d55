"""What a user should know about the images before training, and other plans than the one that was
chosen. Pure functions."""

from selfsight.suggest.choose import SMALL, Setup, setups
from selfsight.suggest.facts import ImageFacts, Machine, Pace
from selfsight.suggest.length import MOST_WARM_UP, Length

# Images: with fewer, a training at random sees each many hundred times, and learns them by heart.
# The smallest set that the shipped recipes train on has 1,437, of 8 x 8 pixels.
TINY = 1_000
FEW = 50_000  # images below which an encoder that has seen many more is usually the better start
UNEVEN = 10  # times the images of the smallest class that the largest has
REPEATED = 0.05  # share of images that are equal to others
PATCH = 16  # pixels
A_GPU = Machine("cuda", "a GPU", 24 * 2**30, 8, True, 0)  # a usual one
WAITING = 0.3  # share of a step
ROOM = 2 * 2**30  # free bytes: a run keeps two checkpoints and writes a third before it removes one


def describe(images: ImageFacts, machine: Machine, pace: Pace) -> list[str]:
    """Sentences about what was found."""
    kind = {1: "gray", 3: "RGB"}.get(images.channels, f"{images.channels}-band")
    bits = "more than 8 bits" if images.deep else "8 bits"
    some = "" if images.looked == images.count else f" (of {images.looked:,} that were looked at)"
    labels = f"{images.classes:,} classes" if images.classes else "no labels"
    cores = f"{machine.cores} core{'s'[: machine.cores != 1]}"
    return [
        f"Written by `selfsight init`. Found: {images.count:,} {kind} images of {bits}, sides of "
        f"{images.smallest} to {images.largest} pixels, median of the shorter one "
        f"{images.shorter}{some}; {labels}; {images.test:,} test images.",
        f"Machine: {machine.name}, {machine.memory / 2**30:.0f} GiB, {cores} for loading, "
        f"{'bf16' if machine.bf16 else 'fp32'}; measured over {pace.steps} steps: "
        f"{pace.rate:.3g} images/s, the slowest part of a step is '{pace.slowest}'.",
    ]


def warnings(images: ImageFacts, machine: Machine, setup: Setup, pace: Pace) -> list[str]:
    """Sentences, the most important first."""
    found = [*_about_start(images), *_about_content(images), *_about_labels(images)]
    if setup.side > SMALL and images.smallest < PATCH:
        found.append(
            f"The smallest image has a side of {images.smallest} pixels, less than a patch of "
            f"{PATCH}: views of {setup.side} pixels show little of such images."
        )
    if pace.waiting > WAITING and not images.decoded:
        found.append(
            f"The device waits for images {pace.waiting:.0%} of a step: pack them once with "
            f"`selfsight pack`, and train on the pack."
        )
    if machine.disk < ROOM:
        found.append(
            f"Only {machine.disk / 2**30:.1f} GiB of the disk are free: checkpoints may fill it; "
            f"free some, or choose another disk with --run."
        )
    return found


def _about_start(images: ImageFacts) -> list[str]:
    if images.count < TINY:
        how = " (the end of the recipe says how)" if images.shorter > SMALL else ""
        return [
            f"Only {images.count:,} images: with fewer than {TINY:,}, an encoder that starts at "
            f"random sees each one so often that it learns them by heart. Start from pretrained "
            f"weights{how}, or add images (labels are not needed)."
        ]
    if images.count < FEW and images.shorter > SMALL:
        return [
            f"{images.count:,} images: below some {FEW:,}, an encoder that was pretrained on many "
            f"more is usually the better start; the end of the recipe says how."
        ]
    return []


def _about_content(images: ImageFacts) -> list[str]:
    found = []
    if images.broken:
        found.append(
            f"{images.broken:,} of {images.looked:,} images are broken, such as {images.example}. "
            f"`selfsight check` lists all."
        )
    if images.repeated >= REPEATED * images.looked:
        found.append(
            f"{images.repeated:,} of {images.looked:,} images are equal to others, byte for byte: "
            f"they count several times, and a batch may contrast two of them. "
            f"`selfsight check` lists them."
        )
    if images.shared:
        found.append(
            f"{images.shared:,} test images are among the training images: evaluations refuse "
            f"them. `selfsight check` lists them."
        )
    return found


def _about_labels(images: ImageFacts) -> list[str]:
    if not images.classes:
        return [
            "No labels: training needs none, but measuring does: "
            "`selfsight knn RUN data.path=LABELLED` takes any labelled images."
        ]
    found = []
    if images.most >= UNEVEN * images.least:
        found.append(
            f"The largest class has {images.most:,} images, the smallest {images.least:,}: an "
            f"accuracy over all images says little of the small ones."
        )
    if not images.own_test:
        held = f"{images.test:,} images are" if images.test else "A part would be"
        found.append(
            f"No test split: {held} held out of the training images, the same in every run "
            f"(data.test_fraction); data.test_path names others."
        )
    return found


def longer(
    images: ImageFacts, machine: Machine, setup: Setup, length: Length, pace: Pace, file: str
) -> list[str]:
    """Lines about a training that would learn more; none if the plan has all that is wanted."""
    if length.epochs >= length.wanted:
        return []
    hours = length.wanted * images.count / pace.rate / 3600
    keys = f"epochs={length.wanted}"
    keys += " max_steps=null" if length.max_steps else ""
    keys += f" schedule.warmup_epochs={MOST_WARM_UP:g}" if setup.warms_up else ""
    lines = [
        f"Longer: about {_time(hours)} on this machine for the {length.wanted} epochs that such "
        f"a set is worth:",
        f"  selfsight pretrain {file} {keys}",
    ]
    if not machine.is_gpu:
        better = setups(images, A_GPU)[0]
        lines.append(
            f"On a GPU `selfsight init` would plan {better.method} with a {better.encoder}, views "
            f"of {better.side} pixels and up to {length.wanted} epochs."
        )
    return lines


def _time(hours: float) -> str:
    if hours < 2:
        minutes = max(1, round(60 * hours))
        return f"{minutes} minute{'s'[: minutes != 1]}"
    return f"{round(hours)} hours" if hours < 72 else f"{round(hours / 24)} days"


def foundation(images: ImageFacts, setup: Setup, data: list[str]) -> tuple[str, list[str]] | None:
    """What a start from pretrained weights is good for, and the arguments of `selfsight pretrain`
    for it, in which "" stands for the recipe; None if it is no better, or for small images, whose
    encoders have another first layer than any that are published.

    Args:
        data: the keys of the data as arguments.
    """
    if images.shorter <= SMALL or images.count >= FEW:
        return None
    about = "Another start, usually better for so few images. The weights are fetched once"
    if images.channels != 3:
        about += f" (45 MB); their first convolution is adapted to {images.channels} channels:"
        return about, ["", "weights=timm:resnet18.a1_in1k"]
    about += " (90 MB); it wants a GPU, for a step takes ten times as long or more:"
    batch = [f"batch_size={setup.batch}"] if setup.batch < 64 else []
    return about, ["adapt/dinov2", *data, *batch]
