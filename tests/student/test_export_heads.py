"""Students with a head for each member, as ONNX graphs that tell data from knowledge uncertainty."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime
import torch
from export_helpers import frame, student_of, torch_member

from ensdistill.data.preprocess import default_transformer
from ensdistill.models import MLP
from ensdistill.student.export import to_onnx
from ensdistill.student.export.running import OnnxStudent
from ensdistill.student.serving.heads import uncertainties_of
from ensdistill.teachers.members.heads import MultiHead

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
HYDRA = partial(MultiHead, model=partial(MLP, inputs=5, hidden=[16], outputs=3), weights=[0.5, 0.2, 0.3])


def outputs_of(exported, feed):
    session = onnxruntime.InferenceSession(exported.model.SerializeToString())
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feed), strict=True))


def test_the_graph_has_probabilities_and_the_mutual_information_of_the_heads():
    student = student_of(torch_member(HYDRA), X, temperature=2.0)
    with torch.no_grad():
        student.member.module.model[-1].weight.mul_(6)  # heads that differ
        heads = student.member.module.heads(torch.from_numpy(X)).numpy()
    found = outputs_of(to_onnx(student, X), {"inputs": X})
    assert set(found) == {"label", "probabilities", "knowledge"}
    np.testing.assert_allclose(found["probabilities"], student.predict_proba(X), atol=1e-5)
    expected = uncertainties_of(heads, np.array([0.5, 0.2, 0.3])).knowledge
    assert expected.max() > 0.1
    np.testing.assert_allclose(found["knowledge"], expected, atol=1e-5)
    np.testing.assert_allclose(student.predict_uncertainty(X).knowledge, expected, atol=1e-6)


def test_the_mutual_information_stays_with_classes_in_another_order_and_a_preprocess():
    table = frame()
    before = default_transformer(table)
    width = before(table).shape[1]
    made = partial(MultiHead, model=partial(MLP, inputs=width, hidden=[8], outputs=3), weights=[1.0, 1.0])
    member = torch_member(made, before, classes=["b", "c", "a"])
    student = student_of(member, table)
    exported = to_onnx(student, table)
    assert exported.largest_difference < 1e-5
    runner = OnnxStudent(exported.model.SerializeToString())
    session = runner._session
    (found,) = session.run(["knowledge"], runner.tensors(table))
    np.testing.assert_allclose(found, student.predict_uncertainty(table).knowledge, atol=1e-5)
