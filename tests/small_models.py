"""Small models as people write them by hand, all of whose continuous symmetries can be counted: see `tests.minis`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.minis import Batches, Mini, numbers


def entries(*counts: int) -> Batches:
    """Ten entries of tables of so many rows."""
    generator = torch.Generator().manual_seed(0)
    return lambda: tuple(torch.randint(0, count, (10,), generator=generator) for count in counts)


def pairs(*widths: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return lambda: tuple(torch.randn(10, width, generator=generator, dtype=torch.float64) for width in widths)


class Normed(nn.Module):
    """A norm that is written out, between two maps."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.read, self.head, self.norm = nn.Linear(5, 6), nn.Linear(6, 7), norm
        self.gain, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.read(inputs)) * self.gain + self.bias))


def by_deviation(stream: Tensor) -> Tensor:
    return (stream - stream.mean(-1, keepdim=True)) / stream.std(-1, keepdim=True)


def by_squares(stream: Tensor) -> Tensor:
    centred = stream - stream.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True))


def by_variance_and_mean(stream: Tensor) -> Tensor:
    variance, mean = torch.var_mean(stream, dim=-1, keepdim=True)
    return (stream - mean) * torch.rsqrt(variance)


def over_the_batch(stream: Tensor) -> Tensor:
    return (stream - stream.mean(0)) / stream.var(0).sqrt()


class GainFromOne(nn.Module):
    """The length of a stream divided away, with a gain that is kept as its difference from one, as Gemma does."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(8, 8), nn.Linear(8, 9)
        self.gain = nn.Parameter(torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.read(inputs)
        return self.head(stream * torch.rsqrt(stream.square().mean(-1, keepdim=True)) * (1 + self.gain))


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.net(inputs)
        return logits - logits.mean(-1, keepdim=True)


class Duelling(nn.Module):
    """The value of a state and the advantages of actions, of which only the differences count."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs))
        advantage = self.advantage(hidden)
        return self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)


class AttentionPooling(nn.Module):
    """Averages tokens by scores of one number each, to which anything may be added."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.score, self.head = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = self.score(torch.tanh(self.hidden(tokens))).softmax(1)
        return self.head((weights * tokens).sum(1))


class Pooled(nn.Module):
    """A set of which the elements are mapped, pooled, and mapped again."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5))
        self.all, self.pool = nn.Linear(5, 6), pool

    def forward(self, elements: Tensor) -> Tensor:
        return self.all(self.pool(self.each(elements)))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)
        self.product, self.head = nn.Bilinear(3, 3, 2), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.product(self.left(left), self.right(right)))


class Temperature(nn.Module):
    """A net whose outputs are divided by a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) / self.temperature


class TiedAutoencoder(nn.Module):
    """Decodes by the transpose of what it encodes by."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.randn(3, 5))
        self.encoded, self.decoded = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(F.linear(inputs, self.map, self.encoded), self.map.T, self.decoded)


class Ratings(nn.Module):
    """What a user thinks of an item: the product of their factors, and a bias of each and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(7, 2), nn.Embedding(6, 2)
        self.of_user, self.of_item = nn.Embedding(7, 1), nn.Embedding(6, 1)
        self.of_all = nn.Parameter(torch.zeros(1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        products = (self.user(user) * self.item(item)).sum(-1)
        return products + self.of_user(user)[:, 0] + self.of_item(item)[:, 0] + self.of_all


class Modulated(nn.Module):
    """Features that a condition multiplies, and adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        self.gain, self.bias = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        return self.head(torch.tanh(self.gain(condition) * self.read(inputs) + self.bias(condition)))


class LayerScale(nn.Module):
    """A residual stream without norms, to which a layer writes through a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head, self.gain = nn.Linear(4, 4), nn.Linear(4, 6), nn.Parameter(torch.ones(4))
        self.layer = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.read(inputs)
        return self.head(stream + self.gain * self.layer(stream))


class PreNorm(nn.Module):
    """A layer that a norm reads, and that writes through a gain."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.gain = nn.LayerNorm(width, eps=0), nn.Parameter(torch.full((width,), 0.1))
        self.layer = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.gain * self.layer(self.norm(stream))


def layer_scale_between_norms() -> nn.Module:
    """As in CaiT and DINOv2."""
    return nn.Sequential(nn.Linear(5, 5), PreNorm(5, 6), PreNorm(5, 7), nn.LayerNorm(5, eps=0), nn.Linear(5, 6))


TAKEN_UP = "what is added to a factor of a product, which the bias of the other factor, or after the product, takes up"

SMALL_MODELS = {
    "layer norm by deviation": Mini(lambda: Normed(by_deviation), numbers(16, 5)),
    "layer norm by squares": Mini(lambda: Normed(by_squares), numbers(16, 5)),
    "layer norm by variance and mean": Mini(lambda: Normed(by_variance_and_mean), numbers(16, 5)),
    "batch norm by hand": Mini(lambda: Normed(over_the_batch), numbers(16, 5)),
    "gain kept as its difference from one": Mini(GainFromOne, numbers(16, 8)),
    "centred logits": Mini(Centred, numbers(16, 4)),
    "duelling": Mini(Duelling, numbers(16, 4)),
    "attention pooling": Mini(AttentionPooling, numbers(16, 5, 4)),
    "set, summed up": Mini(lambda: Pooled(lambda elements: elements.sum(1)), numbers(16, 4, 3)),
    "set, by its maxima": Mini(lambda: Pooled(lambda elements: elements.amax(1)), numbers(16, 4, 3)),
    "bilinear": Mini(Bilinear, pairs(4, 5)),
    "temperature": Mini(Temperature, numbers(16, 4)),
    "tied autoencoder": Mini(TiedAutoencoder, numbers(16, 5)),
    "ratings": Mini(Ratings, entries(7, 6), missing=(4, TAKEN_UP)),
    "modulated": Mini(Modulated, pairs(4, 3), missing=(5, TAKEN_UP)),
    "layer scale": Mini(LayerScale, numbers(16, 4), missing=(16, "mixtures of a stream that gains write to")),
    "layer scale between norms": Mini(layer_scale_between_norms, numbers(16, 5)),
}


class TurnedAttention(nn.Module):
    """Two heads that compare queries and keys by their angle, or turn planes of their coordinates, all or some."""

    def __init__(self, turned=0, side_by_side=False, by_angle=False, gained=False):
        super().__init__()
        self.read, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.query, self.key, self.value, self.output = (nn.Linear(12, 12, bias=False) for _ in range(4))
        self.gain = nn.Parameter(torch.ones(12)) if gained else 1.0
        self.turned, self.side_by_side, self.by_angle = turned, side_by_side, by_angle

    def forward(self, inputs):
        stream = self.read(inputs)
        written = (self.query(stream), self.key(stream) * self.gain, self.value(stream))
        query, key, value = (each.unflatten(-1, (2, 6)).transpose(1, 2) for each in written)
        if self.by_angle:
            query, key = (F.normalize(each, dim=-1) for each in (query, key))
        query, key = self.rotated(query), self.rotated(key)
        attended = (query @ key.mT).softmax(-1) @ value
        return self.last(stream + self.output(attended.transpose(1, 2).flatten(2)))

    def rotated(self, inputs):
        turned, left = inputs[..., : self.turned], inputs[..., self.turned :]
        planes = turned.unflatten(-1, (-1, 2) if self.side_by_side else (2, -1))
        dim = -1 if self.side_by_side else -2
        first, second = planes.unbind(dim)
        angles = torch.arange(inputs.shape[-2])[:, None] / 2.0 ** torch.arange(self.turned // 2)
        pair = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat([torch.stack(pair, dim).flatten(-2), left], -1)
