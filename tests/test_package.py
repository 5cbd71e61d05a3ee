"""The public names: loaded when they are used, known to type checkers, each with an example that the doctests
run."""

import ast
import inspect
from pathlib import Path

import pytest

import ensdistill

LOSSES = ("distillation_loss", "linear_distillation_loss", "DistillationLoss", "RowStatistics")
TARGETS = ("EnsembleLogits", "QuantizedLogits", "LogProbs", "Probs", "TopK", "Counts")
ENCODERS = ("quantize_logits", "top_k_targets", "sample_counts")
MEMORY = ("build_info", "instruction_set", "use_instruction_set", "release_memory")


@pytest.mark.parametrize("name", ensdistill.__all__)
def test_a_public_name_is_there(name):
    value = getattr(ensdistill, name)
    assert name in dir(ensdistill)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("ensdistill.")


def test_no_other_name_is():
    with pytest.raises(AttributeError, match="module 'ensdistill' has no attribute 'distilation_loss'"):
        _ = ensdistill.distilation_loss


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ensdistill.__file__).read_text(encoding="utf-8"))
    (block,) = [x for x in tree.body if isinstance(x, ast.If)]
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == {name: f"ensdistill.{home}" for name, home in ensdistill._HOME.items()}


@pytest.mark.parametrize("name", [*LOSSES, *TARGETS, *ENCODERS, *MEMORY])
def test_a_name_of_the_loss_family_is_documented(name):
    from ensdistill.loss import ops

    value = getattr(ops if name in MEMORY else ensdistill, name)
    text = inspect.getdoc(value)
    assert "Examples\n--------\n>>> " in text
    if name in LOSSES[:2] + TARGETS + ENCODERS:
        assert "Parameters\n----------\n" in text
    if name in LOSSES[:2] + ENCODERS:
        assert "Raises\n------\n" in text
        assert "Returns\n-------\n" in text
        described = text[text.index("Parameters\n") :].split("Returns\n-------")[0]
        parameters = list(inspect.signature(value).parameters)
        if "temperature ... z_loss" in described:  # of the logits' loss, which describes them
            del parameters[parameters.index("temperature") : parameters.index("z_loss")]
        assert [x for x in parameters if x not in described] == []
