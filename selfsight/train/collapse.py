"""The collapse monitor: do the embeddings still tell images apart?"""

from selfsight import metrics
from selfsight.methods.method import Method, Output

ROWS = 256  # of a batch that are looked at
TIMES = 3  # logged steps in a row
# Below these all images look the same: of embeddings the standard deviation (1 is spread out) or
# the effective rank; of features, which transformers begin with nearly alike, the deviation only.
LEAST_STD, LEAST_RANK, LEAST_FEATURE_STD = 0.1, 2.0, 0.02


class CollapseMonitor:
    """Measures every logged step, and says once, in plain words, if a run has collapsed."""

    def __init__(self, method: Method) -> None:
        self._method, self._name = method, method.config.name
        self._times, self._said = 0, False

    def measure(self, output: Output) -> dict[str, float]:
        """What a logged step tells.

        Returns: feature_std and feature_rank of the encoder's features; embedding_std,
            embedding_rank and uniformity where the loss compares, and alignment of two views there.
        """
        features = output.features[:ROWS]
        values = {
            "feature_std": metrics.feature_std(features),
            "feature_rank": metrics.rank_me(features),
        }
        views = [z[:ROWS] for z in output.embeddings]
        if views:
            values["embedding_std"] = metrics.feature_std(views[0])
            values["embedding_rank"] = metrics.rank_me(views[0])
        values["uniformity"] = metrics.uniformity(views[0] if views else features)
        if len(views) > 1:
            values["alignment"] = metrics.alignment(*views[:2])
        return {name: float(value) for name, value in values.items()}

    def verdict(self, values: dict[str, float]) -> str | None:
        """A line about a collapse when it has lasted; None before, and after it was said."""
        kind = "embedding" if "embedding_std" in values else "feature"
        std, rank = values[f"{kind}_std"], values[f"{kind}_rank"]
        if kind == "embedding":
            bad = std < LEAST_STD or rank < LEAST_RANK
        else:
            bad = std < LEAST_FEATURE_STD
        self._times = self._times + 1 if bad else 0
        if self._said or self._times < TIMES:
            return None
        self._said = True
        return (
            f"Collapse: the {kind}s of all images are nearly the same (standard deviation "
            f"{std:.3f} where 1 is spread out, effective rank {rank:.1f}). {self._name} learns "
            f"nothing like this; {self._method.remedy}"
        )
