"""Models that keep heads, experts and members as modules of a list: see `tests.minis`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.minis import Mini, numbers


class Head(nn.Module):
    """One head of attention that sees what came before."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))
        self.register_buffer("seen", torch.tril(torch.ones(32, 32, dtype=torch.bool)))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        scores = self.query(tokens) @ self.key(tokens).mT * self.key.out_features**-0.5
        return F.softmax(scores.masked_fill(~self.seen[:length, :length], -torch.inf), -1) @ self.value(tokens)


class Heads(nn.Module):
    def __init__(self, width: int = 6, n_heads: int = 3, size: int = 2) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, size) for _ in range(n_heads))
        self.out = nn.Linear(n_heads * size, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.cat([head(tokens) for head in self.heads], -1))


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(self.activation(self.up(tokens)))


class Experts(nn.Module):
    """Every token goes to every expert."""

    def __init__(
        self,
        width: int = 4,
        n_experts: int = 3,
        hidden: int = 5,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        self.router = nn.Linear(width, n_experts)
        self.experts = nn.ModuleList(Expert(width, hidden, activation) for _ in range(n_experts))

    def forward(self, tokens: Tensor) -> Tensor:
        weights = F.softmax(self.router(tokens), -1)
        return sum(weights[:, k : k + 1] * expert(tokens) for k, expert in enumerate(self.experts))


class StackedExperts(Experts):
    def forward(self, tokens: Tensor) -> Tensor:
        weights = F.softmax(self.router(tokens), -1)
        outputs = torch.stack([expert(tokens) for expert in self.experts], 1)
        return torch.einsum("ne,ned->nd", weights, outputs)


class RoutedExperts(Experts):
    """Each token goes to the two experts that its router gives the largest weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        weights, chosen = torch.topk(F.softmax(self.router(tokens), -1), 2)
        outputs = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            sent = (chosen == k).any(-1)
            if sent.any():
                weight = (weights * (chosen == k)).sum(-1)[sent]
                outputs[sent] += weight[:, None] * expert(tokens[sent])
        return outputs


class FlattenedExperts(Experts):
    """Sequences are laid end to end, and what an expert is sent is looked up in them, with its weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.router(tokens)
        largest, chosen = scores.topk(2, -1)
        weights = F.softmax(torch.full_like(scores, -torch.inf).scatter(-1, chosen, largest), -1).flatten(0, 1)
        outputs = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            sent = (chosen == k).any(-1)
            if sent.any():
                outputs[sent] += expert(tokens.flatten(0, 1)[sent.flatten()]) * weights[sent.flatten(), k, None]
        return outputs


class MistralExperts(Experts):
    """Each token goes to the experts with the two largest scores, with a softmax of these alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.router(tokens), 2)
        weights = F.softmax(weights, dim=1, dtype=torch.float).type_as(tokens)
        outputs = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            sent, nth = torch.where(chosen == k)
            outputs[sent] += weights[sent, nth, None] * expert(tokens[sent])
        return outputs


class NormedExperts(Experts):
    """Every expert has a layer norm of its own before its map, or after it."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        for k, expert in enumerate(self.experts):
            norm = nn.LayerNorm(4, eps=1e-12)
            self.experts[k] = nn.Sequential(norm, expert) if first else nn.Sequential(expert, norm)


class Ensemble(nn.Module):
    def __init__(self, n_members: int = 3) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(n_members)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members]).mean(0)


class NormedMembers(Ensemble):
    """Members each with a layer norm of its own, whose input may be scaled and flipped as a whole."""

    def __init__(self, n_members: int = 3) -> None:
        super().__init__()
        layers = lambda: (nn.Linear(4, 5), nn.LayerNorm(5, eps=1e-12), nn.GELU(), nn.Linear(5, 2, bias=False))  # noqa: E731
        self.members = nn.ModuleList(nn.Sequential(*layers()) for _ in range(n_members))


class Branches(nn.Module):
    """Convolutions of one image, side by side, each with its own batch norm."""

    def __init__(self, n_branches: int = 3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 3, 1))
            for _ in range(n_branches)
        )
        self.out = nn.Linear(3 * n_branches, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.cat([branch(images) for branch in self.branches], 1).mean((2, 3)))


class Towers(nn.Module):
    """Modules that are alike, but read inputs of their own: they cannot be exchanged."""

    def __init__(self, n_towers: int = 3) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(n_towers))

    def forward(self, inputs: Tensor) -> Tensor:
        return sum(tower(each) for tower, each in zip(self.towers, inputs.unbind(1), strict=True))


class NamedBranches(nn.Module):
    """Two modules with names of their own, one beside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Expert(4, 6), Expert(4, 6)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(F.gelu(self.left(inputs) + self.right(inputs)))


class Factors(nn.Module):
    """Two maps that are alike, and multiplied: one is squashed, or both are."""

    def __init__(self, both: bool = True) -> None:
        super().__init__()
        self.one, self.two, self.out, self.both = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), both

    def forward(self, inputs: Tensor) -> Tensor:
        two = self.two(inputs)
        return self.out(torch.sigmoid(self.one(inputs)) * (torch.sigmoid(two) if self.both else two))


class GatedInTurn(nn.Module):
    """Experts of which each asks the gate anew."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(Expert(4, 5) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        output = torch.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            output = output + self.gate(inputs).softmax(-1)[:, number : number + 1] * expert(inputs)
        return output


class Filled(nn.Module):
    """Modules of a list that write to columns of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(3))
        self.out = nn.Linear(6, 7)

    def forward(self, inputs: Tensor) -> Tensor:
        filled = inputs.new_empty(len(inputs), 3, 2)
        for number, member in enumerate(self.members):
            filled[:, number] = member(inputs)
        return self.out(filled.flatten(1))


class Maxout(nn.Module):
    """The larger of two maps; what is added to both passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.maximum(self.one(inputs), self.two(inputs)))


MODULE_LISTS = {
    "heads as modules": Mini(Heads, numbers(3, 7, 6)),
    "experts as modules": Mini(Experts, numbers(16, 4)),
    "experts as modules, stacked": Mini(StackedExperts, numbers(16, 4)),
    "experts as modules, routed": Mini(RoutedExperts, numbers(32, 4)),
    "experts as modules, flattened": Mini(FlattenedExperts, numbers(8, 4, 4)),
    "experts as modules, by their scores": Mini(MistralExperts, numbers(32, 4)),
    "experts as modules, behind norms": Mini(NormedExperts, numbers(16, 4)),
    "ensemble": Mini(Ensemble, numbers(16, 4)),
    "members with norms": Mini(NormedMembers, numbers(16, 4)),
    "branches": Mini(Branches, numbers(4, 2, 5, 5)),
    "branches with names": Mini(NamedBranches, numbers(16, 4)),
    "factors with names": Mini(Factors, numbers(16, 4)),
    "experts as modules, gated in turn": Mini(GatedInTurn, numbers(16, 4)),
    "outputs filled by members": Mini(Filled, numbers(16, 4)),
    "maxout": Mini(Maxout, numbers(16, 4)),
    "towers": Mini(Towers, numbers(16, 3, 4)),
}
