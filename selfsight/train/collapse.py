"""The collapse monitor: it notices when the embeddings of all images become nearly the same."""

from selfsight import metrics
from selfsight.methods.method import Method, Output

ROWS = 256  # images of a batch that are measured
TIMES = 3  # logged steps in a row below a limit that make a collapse
# The limits. Of embeddings: standard deviation (1: spread out over the sphere) and effective rank.
# Of features: only the deviation, and lower, since an untrained transformer's are much alike.
LEAST_STD, LEAST_RANK, LEAST_FEATURE_STD = 0.1, 2.0, 0.02


class CollapseJudge:
    """Reports a collapse once, from the measurements of the logged steps.

    Args:
        name: of the method; remedy: what to change.
    """

    def __init__(self, name: str, remedy: str | None) -> None:
        self._name, self._remedy = name, remedy
        self._times, self._said = 0, False

    def verdict(self, values: dict[str, float]) -> str | None:
        """The line that reports a collapse, the first time that it is certain; otherwise None."""
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
            f"nothing like this; {self._remedy}"
        )


class CollapseMonitor(CollapseJudge):
    """Measures the logged steps of a run, and reports a collapse once."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.config.name, method.remedy)

    def measure(self, output: Output) -> dict[str, float]:
        """Measure one step.

        Returns: feature_std and feature_rank of the encoder's features; embedding_std,
            embedding_rank and uniformity of the embeddings that the loss compares; alignment of two
            views' embeddings.
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
