"""The family of boosted trees."""

from __future__ import annotations

from importlib.util import find_spec

from ensdistill.student.search.families import About, Candidate

CLASSIFIER, REGRESSOR = "lightgbm.LGBMClassifier", "lightgbm.LGBMRegressor"
SIZES = {"small": 30, "medium": 100, "large": 300}  # rounds
QUIET = {"n_jobs": 1, "verbosity": -1}
SECONDS = 4e-7  # of a fit, for each row, class and round, in one thread


class Boosted:
    """Trees of LightGBM, on arrays and tables; their size is the number of rounds. Each of several labels, or
    numbers, has trees of its own."""

    name = "boosted"

    def refuses(self, about: About) -> str:
        if about.kind not in ("table", "array") or (about.kind == "array" and len(about.shape) != 1):
            return f"it takes arrays [N, F] and tables; got {about.kind} of shape {list(about.shape)}"
        if find_spec("lightgbm") is None:
            return "it needs LightGBM: pip install 'ensdistill[trees]'"
        return ""

    def candidates(self, about: About) -> list[Candidate]:
        kind = REGRESSOR if about.task == "regression" else CLASSIFIER
        return [
            Candidate(
                self.name,
                name,
                estimator={
                    "class_path": kind,
                    "init_args": {"n_estimators": rounds, "n_jobs": 1, "verbosity": -1},
                },
                seconds=SECONDS * about.rows * about.classes * rounds,
            )
            for name, rounds in SIZES.items()
        ]
