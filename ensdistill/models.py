"""Small networks: students and members. Any ``torch.nn.Module`` that maps [N, ...] to [N, C] serves too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "silu", "tanh"]
Pooling = Literal["max", "average"]
Numbers = Literal["plain", "piecewise", "periodic"]
Average = Literal["softmax", "sigmoid", "outputs"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
_POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}; got {name!r}")
    return _ACTIVATIONS[name]()


def _head(
    features: int, hidden: Sequence[int], outputs: int, dropout: float, activation: str
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), _activation(activation)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        features = width
    return [*layers, nn.Linear(features, outputs)]


class MLP(nn.Sequential):
    """Flatten, then fully connected layers.

    Parameters
    ----------
    inputs : int
        Numbers per sample; the trailing shape of a sample does not matter.
    hidden : sequence of int
        Widths of the hidden layers; empty for a linear model.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after each hidden layer.
    activation : {"relu", "gelu", "silu", "tanh"}
        After each hidden layer. A smooth one (silu) follows a smooth teacher more closely than ReLU does.

    Examples
    --------
    >>> sum(p.numel() for p in MLP(inputs=64, hidden=[64], outputs=10).parameters())
    4810
    """

    def __init__(
        self,
        inputs: int = 64,
        hidden: Sequence[int] = (64,),
        outputs: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(nn.Flatten(), *_head(inputs, hidden, outputs, dropout, activation))


class CNN(nn.Sequential):
    """Stages of 3x3 convolutions (padding 1), each ended by a 2x2 pooling; then fully connected layers.

    Parameters
    ----------
    channels : sequence of int or of sequences of int
        One entry per stage: the channels of its convolution, or of each of its convolutions.
    image : sequence of three int
        Channels, height and width of one input.
    hidden : sequence of int
        Widths of hidden fully connected layers between the last stage and the output.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after the last stage and after each hidden layer.
    activation : {"relu", "gelu", "silu", "tanh"}
        After each convolution and hidden layer.
    pooling : {"max", "average"}
        At the end of each stage. Averages are smooth: a small network then follows a smooth teacher more
        closely.

    Raises
    ------
    ValueError
        The image is too small for that many stages, or an unknown activation or pooling.

    Examples
    --------
    >>> sum(p.numel() for p in CNN(channels=[8, 16], image=[1, 8, 8], outputs=10).parameters())
    1898
    """

    def __init__(
        self,
        channels: Sequence[int | Sequence[int]] = (8, 16),
        image: Sequence[int] = (1, 8, 8),
        hidden: Sequence[int] = (),
        outputs: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
        pooling: Pooling = "max",
    ) -> None:
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(_POOLINGS)}; got {pooling!r}")
        if len(image) != 3:
            raise ValueError(f"image: expected [channels, height, width]; got {list(image)}")
        depth, height, width = image
        if min(height, width) >> len(channels) == 0:
            raise ValueError(
                f"image: {height}x{width} pixels are too few for {len(channels)} stages, each of which "
                "halves them"
            )
        layers: list[nn.Module] = []
        for stage in channels:
            for count in [stage] if isinstance(stage, int) else stage:
                layers += [nn.Conv2d(depth, count, 3, padding=1), _activation(activation)]
                depth = count
            layers.append(_POOLINGS[pooling](2))
            height, width = height // 2, width // 2
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(
            *layers,
            nn.Flatten(),
            *_head(math.prod((depth, height, width)), hidden, outputs, dropout, activation),
        )


class TabularMLP(nn.Module):
    """An MLP on a table: numbers by embeddings of their own, categories by learned embeddings.

    Its input is that of :func:`ensdistill.data.preprocess.default_transformer` with ``codes``: first the
    scaled numbers, then flags and one-hot columns, then codes of categories from -1 on.

    Parameters
    ----------
    inputs : int
        All columns.
    numeric : int
        Scaled numbers among them, the first ones.
    cardinalities : sequence of int
        Different codes of each category, -1 among them; the last columns.
    hidden : sequence of int
        Widths of the hidden layers.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after each hidden layer.
    activation : {"relu", "gelu", "silu", "tanh"}
    numbers : {"plain", "piecewise", "periodic"}
        As they are; by piecewise linear embeddings with ``bins`` bins, which hold equally many values of a
        standard normal distribution, near to that of numbers scaled by powers, the default; or by periodic
        ones. The two need the package ``rtdl_num_embeddings`` (``pip install 'ensdistill[table]'``).
    width : int
        Of each number's embedding.
    bins : int

    References
    ----------
    Gorishniy et al. (2022), "On Embeddings for Numerical Features in Tabular Deep Learning".

    Examples
    --------
    >>> model = TabularMLP(inputs=4, numeric=2, cardinalities=[5], outputs=3)
    >>> model(torch.tensor([[0.1, 0.9, 1.0, -1.0], [0.2, 0.3, 0.0, 3.0]])).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        inputs: int = 8,
        numeric: int = 0,
        cardinalities: Sequence[int] = (),
        hidden: Sequence[int] = (256, 256),
        outputs: int = 2,
        dropout: float = 0.0,
        activation: Activation = "relu",
        numbers: Numbers = "plain",
        width: int = 12,
        bins: int = 16,
    ) -> None:
        super().__init__()
        if numeric + len(cardinalities) > inputs:
            raise ValueError(
                f"inputs: expected at least {numeric + len(cardinalities)}, {numeric} numbers and "
                f"{len(cardinalities)} categories; got {inputs}"
            )
        self.numeric, self.plain = numeric, inputs - len(cardinalities)
        self.numbers = _number_embeddings(numbers, numeric, width, bins) if numeric else None
        # The usual rule of thumb, as in fastai's tabular models.
        self.categories = nn.ModuleList(
            nn.Embedding(count, min(50, math.ceil(1.6 * count**0.56))) for count in cardinalities
        )
        embedded = sum(m.embedding_dim for m in self.categories if isinstance(m, nn.Embedding))
        features = self.plain + embedded + (numeric * (width - 1) if self.numbers is not None else 0)
        self.head = self._made_head(features, hidden, outputs, dropout, activation)

    def _made_head(
        self, features: int, hidden: Sequence[int], outputs: int, dropout: float, activation: str
    ) -> nn.Module:
        return nn.Sequential(*_head(features, hidden, outputs, dropout, activation))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, outputs] for float32 [N, inputs]."""
        parts = [inputs[:, : self.plain]]
        if self.numbers is not None:
            parts = [self.numbers(inputs[:, : self.numeric]).flatten(1), inputs[:, self.numeric : self.plain]]
        for column, embedding in enumerate(self.categories, self.plain):
            parts.append(embedding(inputs[:, column].long() + 1))
        out: Tensor = self.head(torch.cat(parts, 1))
        return out


class TabM(TabularMLP):
    """An ensemble of MLPs in one: they share their large matrices, and each has scales and biases of its own.

    In training each row of a batch goes through one of them, in turn, so a step costs as much as that of one
    MLP, and needs more steps. In evaluation each row goes through all, and they are averaged.

    Parameters
    ----------
    inputs, numeric, cardinalities, hidden, outputs, dropout, activation, numbers, width, bins
        As of :class:`TabularMLP`.
    members : int
        MLPs in it.
    average : {"softmax", "sigmoid", "outputs"}
        The mean of the members' probabilities, of classes or of several labels; or of their outputs, of a
        regression.

    References
    ----------
    Gorishniy et al. (2024), "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling"; Wen
    et al. (2020), "BatchEnsemble: an Alternative Approach to Efficient Ensemble and Lifelong Learning".

    Examples
    --------
    >>> TabM(inputs=4, hidden=[8], outputs=3, members=2).eval()(torch.rand(5, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        inputs: int = 8,
        numeric: int = 0,
        cardinalities: Sequence[int] = (),
        hidden: Sequence[int] = (256, 256),
        outputs: int = 2,
        dropout: float = 0.0,
        activation: Activation = "silu",
        numbers: Numbers = "plain",
        width: int = 12,
        bins: int = 16,
        members: int = 4,
        average: Average = "softmax",
    ) -> None:
        if members < 1:
            raise ValueError(f"members: expected at least 1; got {members}")
        if average not in ("softmax", "sigmoid", "outputs"):
            raise ValueError(f"average: expected softmax, sigmoid or outputs; got {average!r}")
        self._kind: tuple[int, Average] = (members, average)
        super().__init__(
            inputs, numeric, cardinalities, hidden, outputs, dropout, activation, numbers, width, bins
        )

    def _made_head(
        self, features: int, hidden: Sequence[int], outputs: int, dropout: float, activation: str
    ) -> nn.Module:
        return _Averaged(*self._kind, features, hidden, outputs, dropout, activation)


class _Averaged(nn.Module):
    """The members' layers after the embeddings, and their average."""

    def __init__(
        self,
        members: int,
        average: Average,
        features: int,
        hidden: Sequence[int],
        outputs: int,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.members, self.average = members, average
        sizes = [features, *hidden]
        # Members that begin alike would stay alike: the first scales are random signs, and biases differ.
        signs = torch.randint(2, (members, features)).float() * 2 - 1
        ones = [torch.ones(members, size) for size in sizes[1:]]
        self.scales_in = nn.ParameterList([signs, *ones[:-1]][: len(hidden)])
        self.scales_out = nn.ParameterList(ones)
        self.shared = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(_uniform(a, members, b) for a, b in pairwise(sizes))
        self.last = nn.Parameter(_uniform(sizes[-1], members, sizes[-1], outputs))
        self.last_bias = nn.Parameter(_uniform(sizes[-1], members, outputs))
        self.activation, self.dropout = _activation(activation), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The averages [N, outputs]; in training the output of one member for each row."""
        if self.training:
            own = torch.arange(x.shape[0], device=x.device) % self.members
            for scale, linear, scaled, bias in self._layers():
                x = self.dropout(self.activation(linear(x * scale[own]) * scaled[own] + bias[own]))
            return torch.einsum("nh,nho->no", x, self.last[own]) + self.last_bias[own]
        x = x.unsqueeze(1)
        for scale, linear, scaled, bias in self._layers():
            x = self.activation(linear(x * scale) * scaled + bias)
        outputs = torch.einsum("nkh,kho->nko", x.expand(-1, self.members, -1), self.last) + self.last_bias
        if self.average == "outputs":
            return outputs.mean(1)
        if self.average == "softmax":
            return outputs.log_softmax(-1).logsumexp(1) - math.log(self.members)
        yes, no = (nn.functional.logsigmoid(sign * outputs).logsumexp(1) for sign in (1, -1))
        return yes - no

    def _layers(self) -> Iterator[tuple[Tensor, nn.Module, Tensor, Tensor]]:
        return zip(self.scales_in, self.shared, self.scales_out, self.biases, strict=True)


def _uniform(features: int, *shape: int) -> Tensor:
    """As torch.nn.Linear begins."""
    bound = 1 / math.sqrt(features)
    return torch.empty(shape).uniform_(-bound, bound)


def _number_embeddings(kind: Numbers, count: int, width: int, bins: int) -> nn.Module | None:
    if kind == "plain":
        return None
    if kind not in ("piecewise", "periodic"):
        raise ValueError(f"numbers: expected plain, piecewise or periodic; got {kind!r}")
    try:
        import rtdl_num_embeddings as rtdl
    except ImportError as error:
        raise ImportError(
            f"numbers: {kind!r} needs rtdl_num_embeddings: pip install 'ensdistill[table]'"
        ) from error
    embeddings: nn.Module
    if kind == "periodic":
        embeddings = rtdl.PeriodicEmbeddings(count, width, lite=False)
    else:
        embeddings = rtdl.PiecewiseLinearEmbeddings(
            [_edges(bins)] * count, width, activation=False, version="B"
        )
    return embeddings


def _edges(bins: int) -> Tensor:
    """Edges of bins of a standard normal distribution, the outermost at 3 standard deviations.

    >>> _edges(4).tolist()
    [-3.0, -0.6744897961616516, 0.0, 0.6744897961616516, 3.0]
    """
    return torch.special.ndtri(torch.linspace(0, 1, bins + 1)).clamp(-3, 3)


class BagOfNgrams(nn.Module):
    """The sum of the embeddings of a text's n-grams by the square root of their number, and fully connected
    layers.

    fastText's classifier has the mean in place of this sum, TensorFlow calls them the combiners ``mean`` and
    ``sqrtn``. By the mean, the vector of a long text is shorter than that of a short one, because n-grams
    that do not matter average out; so the same evidence counts less in it.

    Parameters
    ----------
    buckets : int
        The largest id; 0 fills texts up and has no part in the sum. See
        :class:`ensdistill.data.preprocess.HashedNgrams`.
    width : int
        Of an embedding.
    hidden : sequence of int
        Widths of hidden layers.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after the sum and after each hidden layer.

    References
    ----------
    Joulin et al. (2017), "Bag of Tricks for Efficient Text Classification".

    Examples
    --------
    >>> BagOfNgrams(buckets=100, outputs=3)(torch.tensor([[5, 7, 0], [1, 0, 0]])).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        buckets: int = 2**16,
        width: int = 64,
        hidden: Sequence[int] = (),
        outputs: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embeddings = nn.EmbeddingBag(buckets + 1, width, mode="sum", padding_idx=0)
        with torch.no_grad():  # as fastText: n-grams that no training text has should weigh little
            self.embeddings.weight[1:].uniform_(-1 / width, 1 / width)
        self.head = nn.Sequential(nn.Dropout(dropout), *_head(width, hidden, outputs, dropout, "relu"))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [N, outputs] for int64 ids [N, length]."""
        summed = self.embeddings(ids)
        count = (ids > 0).sum(1, keepdim=True).clamp(min=1).to(summed.dtype)
        out: Tensor = self.head(summed / count.sqrt())
        return out


class TextTransformer(nn.Module):
    """A small transformer encoder on the ids of words, averaged over a text's words.

    Parameters
    ----------
    buckets : int
        The largest id; 0 fills texts up. ``HashedNgrams(words=1)`` gives the ids of words in their order.
    length : int
        Ids of each text.
    width, heads, layers : int
    outputs : int
        Classes.
    dropout : float

    Examples
    --------
    >>> model = TextTransformer(buckets=100, length=4, width=16, heads=2, layers=1, outputs=3)
    >>> model(torch.tensor([[5, 7, 0, 0], [1, 2, 3, 4]])).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        buckets: int = 2**14,
        length: int = 64,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        outputs: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [N, outputs] for int64 ids [N, length]."""
        there = ids > 0
        there[:, 0] = True  # an empty text has one word, of no meaning
        places = self.places(torch.arange(ids.shape[1], device=ids.device))
        encoded = self.encoder(self.embedding(ids) + places, src_key_padding_mask=~there)
        weight = there.unsqueeze(2).to(encoded.dtype)
        out: Tensor = self.head((encoded * weight).sum(1) / weight.sum(1))
        return out
