"""Write the files that examples/existing_members.yaml names: members that were trained elsewhere, on rows of
their own.

    python examples/existing_members.py && ensdistill run examples/existing_members.yaml

Both commands take half a minute together.
"""

from pathlib import Path

import numpy as np
import skops.io
from safetensors.torch import save_file
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from xgboost import XGBClassifier

from ensdistill import Ensemble
from ensdistill.common.optimization import Optimization
from ensdistill.data import Digits, Rows
from ensdistill.models import MLP

folder = Path("members")
folder.mkdir(exist_ok=True)
# The members learn from other rows than the job's 200 labelled ones: its data set keeps these apart by seed.
split, job = Digits(labelled=600, pool=0).split(seed=7), Digits(labelled=200, pool=900).split(seed=0)
mine = ~np.isin(split.labelled.uids, np.concatenate([job.labelled.uids, job.test.uids]))
rows = split.labelled.take(mine)
x, y = rows.inputs.reshape(len(rows), -1), rows.labels

# One file for each member, in its library's own format.
skops.io.dump(ExtraTreesClassifier(100, random_state=0).fit(x, y), folder / "extra_trees.skops")
XGBClassifier(n_estimators=30, n_jobs=1).fit(x, y).save_model(folder / "xgboost.ubj")

# The state of a torch module, whose class the job names.
quick = Optimization(steps=300, batch_size=32, learning_rate=0.01)
nets = Ensemble.train(MLP, Rows(rows.inputs, rows.uids, y), members=2, optimization=quick, seed=1)
save_file(nets.members[0].module.state_dict(), folder / "mlp.safetensors")

# A saved ensemble.
Ensemble.from_members([nets.members[1], LogisticRegression().fit(x, y)]).save(folder / "ensemble")

# Answers of a member that cannot be loaded here, by the uid of each sample.
svc = SVC(probability=True, random_state=0).fit(x, y)
parts = [job.labelled, job.pool, job.test]
np.save(folder / "svc.npy", svc.predict_proba(np.concatenate([p.inputs for p in parts]).reshape(-1, 64)))
np.save(folder / "svc_uids.npy", np.concatenate([p.uids for p in parts]))
