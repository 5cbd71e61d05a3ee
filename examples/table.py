"""The table of examples/table.yaml in Python, with members of your own: a pipeline on named columns, CatBoost
with categories, and a network with its own transformer become one network that takes the same raw rows.

    python examples/table.py

It takes a few seconds.
"""

from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from catboost import CatBoostClassifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from ensdistill import Ensemble, Optimization, StudentTrainer, cache_targets
from ensdistill.data import Table
from ensdistill.data.preprocess import default_transformer
from ensdistill.data.transfer import Munge, TransferSet
from ensdistill.models import MLP

# Labels are strings, and some are missing (NA): those rows are the pool.
split = Table(Path(__file__).with_name("penguins.csv"), target="sex", unlabelled=["NA"]).split(seed=0)
frame, sex = split.labelled.inputs[:], split.labelled.labels
words, numbers = ["species", "island"], [*frame.columns.drop(["species", "island"])]

columns = make_column_transformer(
    (OneHotEncoder(handle_unknown="ignore"), words), (SimpleImputer(strategy="median"), numbers)
)
forest = make_pipeline(columns, RandomForestClassifier(random_state=0)).fit(frame, sex)
boosted = CatBoostClassifier(200, cat_features=words, verbose=False, allow_writing_files=False).fit(
    frame, sex
)
# Medians for gaps, quantiles of numbers, a column for each category: fitted without labels.
scaler = default_transformer(frame)
network = partial(MLP, inputs=scaler(frame).shape[1], hidden=[32], outputs=2)
trainer = StudentTrainer(Optimization(steps=300, batch_size=32))
net = trainer.direct(network, split.labelled, classes=2, preprocess=scaler)

# A tuple is a model with its preprocess. Each member predicts raw frames exactly as its own library does.
ensemble = Ensemble.from_members([forest, boosted, (net.module, scaler)], classes=split.classes)
rows = TransferSet(synthetic=[Munge(rows=2000)]).build(split, seed=0).rows
cache = cache_targets(ensemble, rows, Path(mkdtemp()) / "targets")
trained = StudentTrainer(Optimization(steps=1000)).distill(network, rows, cache, preprocess=scaler)
student = trained.member(classes=split.classes, factory=network)

test, truth = split.test.inputs[:], split.test.labels
found = {
    "ensemble": ensemble.predict_proba(test).argmax(1),
    "student": student.predict_logits(test).argmax(1),
}
for name, classes in found.items():
    print(f"{name}: {(classes == truth).mean():.1%} of {len(truth)} test rows are right")
print(test[:1], split.classes[found["student"][0]], sep="\n")
