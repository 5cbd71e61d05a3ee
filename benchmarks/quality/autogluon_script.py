"""``python autogluon_script.py FOLDER``: AutoGluon's ensemble of a table, distilled.

In an environment of its own, without ensdistill. FOLDER holds train.parquet (with the column label_),
test.parquet, perhaps pool.parquet, and settings.json; probabilities.npy and models.json are written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

LEAST = 1e-6  # probability


def main(folder: Path) -> None:
    from autogluon.tabular import TabularPredictor

    settings = json.loads((folder / "settings.json").read_text())
    train, test = pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "test.parquet")
    pool = folder / "pool.parquet"
    unlabelled = pd.read_parquet(pool) if pool.is_file() else None
    classes = sorted(train["label_"].unique())
    predictor = TabularPredictor(label="label_", path=folder / "models", eval_metric="log_loss", verbosity=1)
    predictor.fit(train, time_limit=settings["seconds"] / 2, num_cpus=1)
    names = predictor.distill(
        time_limit=settings["seconds"] / 2,
        augment_args={"size_factor": 5, "max_size": 100_000},
        augmentation_data=unlabelled,
        teacher_preds="soft",
    )
    board = predictor.leaderboard().set_index("model")
    best = max(names, key=lambda name: board.loc[name, "score_val"])
    found = predictor.predict_proba(test, model=best)[classes].to_numpy()
    # Its students of two classes are regressors, whose values leave [0, 1].
    found = np.clip(found, LEAST, 1)
    found /= found.sum(1, keepdims=True)
    np.save(folder / "probabilities.npy", found)
    (folder / "models.json").write_text(json.dumps({"chosen": best, "all": list(map(str, names))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
