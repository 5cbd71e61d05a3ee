"""Codecs of a user's own, right and wrong ones. Tests import them from a copy, as ``own_codecs``."""

from dataclasses import dataclass

import numpy as np

from ensdistill.cache import Codec, Encoded
from ensdistill.cache.codecs import codec_of


class HalfLogProbs(Codec):
    """float16 log-probabilities of the mixture; no settings."""

    mixture_only = True

    def fields(self, members, classes):
        return {"log_probs": ("<f2", (classes,)), "largest": ("<f4", ())}

    def encode(self, batch):
        log_p = batch.mixture
        return Encoded(
            {"log_probs": log_p.half().cpu().numpy(), "largest": log_p.amax(-1).float().cpu().numpy()}
        )

    def decode(self, fields, classes):
        return fields["log_probs"].astype(np.float32)[:, None]


class OneDraw(Codec):
    """A single draw of a class from the mixture."""

    mixture_only = seeded = True
    lossy_advice = None

    def fields(self, members, classes):
        return {"drawn": ("<i4", (1,))}

    def encode(self, batch):
        uniform = [np.random.default_rng([batch.seed, int(i)]).random() for i in batch.draw_ids]
        cumulative = batch.mixture.exp().cumsum(-1).numpy()
        drawn = (np.array(uniform)[:, None] > cumulative).sum(-1).clip(max=cumulative.shape[-1] - 1)
        kl = -np.take_along_axis(batch.mixture.numpy(), drawn[:, None], 1).T
        return Encoded({"drawn": drawn[:, None].astype("<i4")}, kl)

    def decode(self, fields, classes):
        return np.where(fields["drawn"] == np.arange(classes), np.float32(0), np.float32(-np.inf))[:, None]


@dataclass(frozen=True)
class Wrong(Codec):
    fault: str = ""

    def fields(self, members, classes):
        shapes = {"shape": (members + 1, classes), "scalar": (), "negative": (members, -1)}
        dtypes = {"big endian": ">f4", "object": "O", "nonsense": "f5"}
        name = "input_hash" if self.fault == "reserved" else "z"
        return {name: (dtypes.get(self.fault, "<f4"), shapes.get(self.fault, (members, classes)))}

    def encode(self, batch):
        z = batch.values.numpy().swapaxes(0, 1)
        fields = {"z": z.astype(np.float64) if self.fault == "float64" else z}
        if self.fault == "missing":
            fields = {}
        if self.fault == "more":
            fields["y"] = z
        return Encoded(fields, np.zeros(3) if self.fault == "kl" else None)

    def decode(self, fields, classes):
        z = fields["z"].astype(np.float32)
        if self.fault == "decoded shape":
            return z[:, 0]
        if self.fault == "masked":
            z[..., 0] = -np.inf
        if self.fault == "nan":
            z[0] = np.nan
        return z


class Argument(Codec):
    def __init__(self, bits=4):
        self.bits = bits

    fields, encode, decode = Wrong.fields, Wrong.encode, Wrong.decode


class NoCodec:
    pass


class Renamed(HalfLogProbs):
    name = "uint8"


def local():
    class Local(HalfLogProbs):
        pass

    return Local()


class Uint8(type(codec_of("uint8"))):
    """Of the package's own, with another advice."""

    lossy_advice = "other advice"
