"""Transfer sets: the inputs on which the student is trained to match the ensemble."""

from ensdistill.data.transfer.base import DifferentiableEnsemble, Synthetic
from ensdistill.data.transfer.diversity import Diversity
from ensdistill.data.transfer.exchange import Exchange
from ensdistill.data.transfer.images import Augmented, CutMix
from ensdistill.data.transfer.mixup import Mixup
from ensdistill.data.transfer.munge import Munge
from ensdistill.data.transfer.rounds import Rounds
from ensdistill.data.transfer.sets import Transfer, TransferSet
from ensdistill.data.transfer.texts import DropTokens, NGrams, ReplaceTokens, SpliceTexts

__all__ = [
    "Augmented",
    "CutMix",
    "DifferentiableEnsemble",
    "Diversity",
    "DropTokens",
    "Exchange",
    "Mixup",
    "Munge",
    "NGrams",
    "ReplaceTokens",
    "Rounds",
    "SpliceTexts",
    "Synthetic",
    "Transfer",
    "TransferSet",
]
