"""Models of some hundred parameters, one for each family of the zoo that is smooth, to count all their symmetries.

The small constants of their norms are zero, so that scales hold exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightning_symmetry.symmetry.find import find_symmetries
from tests.reference.completeness import generic, unaccounted

Batches = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Mini:
    """A model, its batches, and how its outputs come out of what it returns.

    Attributes:
        make: Builds the model.
        batch: Makes a new batch.
        outputs: From what the model returns to its outputs.
        tolerance: The singular value, relative to the largest, below which a direction counts as one in which nothing
            changes: that of rounding, which is coarser where a model computes in float32.
        missing: How many directions no group found accounts for, and of what families they are.
    """

    make: Callable[[], nn.Module]
    batch: Batches
    missing: tuple[int, str] = (0, "")
    outputs: Callable[[Any], Tensor] = lambda returned: returned
    tolerance: float = 1e-9


def numbers(*shape: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return lambda: (torch.randn(*shape, generator=generator, dtype=torch.float64),)


def tokens(vocabulary: int = 9) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return lambda: (torch.randint(0, vocabulary, (2, 6), generator=generator),)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(inputs)[0])


class Encoder(nn.Module):
    """Reads as many numbers as its stream is wide, and gives more: what is narrower has a kernel of its own."""

    def __init__(self, norm_first: bool, n_inputs: int = 8, n_outputs: int = 9) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(n_inputs, 8), nn.Linear(8, n_outputs)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 9, batch_first=True, activation="gelu", norm_first=norm_first, layer_norm_eps=0.0, dropout=0.0
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.block(self.read(inputs)))


class Residual(nn.Module):
    """A stream that one map reads behind a norm, and writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.norm, self.map = nn.Linear(8, 8), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 8)
        self.last, self.head = nn.LayerNorm(8, eps=0.0), nn.Linear(8, 9)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.read(inputs)
        return self.head(self.last(stream + self.map(self.norm(stream))))


class Length(nn.Module):
    """A norm of no more than the length, with a gain, a bias, and a map without a bias that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.gain, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.read(inputs)
        normed = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True))
        return self.head(normed * self.gain + self.bias)


class LoRA(nn.Module):
    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 5).requires_grad_(not frozen), nn.Linear(5, 3)
        self.A, self.B = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(inputs) + self.B(self.A(inputs))))


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 5))

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = self.body(inputs[:, 0]), self.body(inputs[:, 1])
        return (left - right).square().sum(-1)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4, eps=1e-30),
            nn.Tanh(),
            nn.Conv2d(4, 3, 3),
            nn.GroupNorm(3, 3, eps=0.0),
            nn.GELU(),
            nn.Conv2d(3, 5, 1),
        )
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean((2, 3)))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=9,
            n_positions=6,
            n_embd=8,
            n_layer=1,
            n_head=2,
            n_inner=9,
            layer_norm_epsilon=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=9,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            rms_norm_eps=0.0,
            use_cache=False,
        )
    )


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=9,
            max_position_embeddings=6,
            type_vocab_size=1,
            layer_norm_eps=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def logits(returned: Any) -> Tensor:
    return returned.logits


SHEAR = "the mean of a stream that norms and other maps read both, to which the maps answer"
NARROW = "what reads a stream that a narrow input spans in part, what writes to one that a narrow output reads in part"

BEHIND = "the mean of what reads a norm, to which the norm's bias answers where no other is there to take it up"

MINIS = {
    "mlp tanh": Mini(
        lambda: nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)), numbers(16, 3)
    ),
    "mlp gelu": Mini(lambda: nn.Sequential(nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 2)), numbers(16, 3)),
    "mlp identity": Mini(
        lambda: nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 2)),
        numbers(16, 3),
    ),
    "mlp layer norm": Mini(
        lambda: nn.Sequential(
            nn.Linear(3, 7),
            nn.LayerNorm(7, eps=0.0),
            nn.GELU(),
            nn.Linear(7, 5),
            nn.LayerNorm(5, eps=0.0),
            nn.Linear(5, 3),
        ),
        numbers(16, 3),
    ),
    "layer norm, read without a bias": Mini(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 9, bias=False)),
        numbers(16, 8),
        missing=(8, BEHIND),
    ),
    "length, read without a bias": Mini(Length, numbers(16, 8)),
    "residual": Mini(Residual, numbers(16, 8)),
    "convolutions": Mini(Convolutions, numbers(3, 2, 5, 5)),
    "encoder post-norm": Mini(lambda: Encoder(False), numbers(2, 6, 8), missing=(9, SHEAR)),
    "encoder pre-norm": Mini(lambda: Encoder(True), numbers(2, 6, 8), missing=(8, SHEAR)),
    "encoder pre-norm, narrow": Mini(lambda: Encoder(True, 5, 3), numbers(2, 6, 5), missing=(78, NARROW)),
    "lstm": Mini(lambda: Recurrent(nn.LSTM), numbers(4, 5, 3)),
    "gru": Mini(lambda: Recurrent(nn.GRU), numbers(4, 5, 3)),
    "lora": Mini(lambda: LoRA(frozen=True), numbers(16, 6)),
    "lora, not frozen": Mini(
        lambda: LoRA(frozen=False), numbers(16, 6), missing=(18, "the adapter taken into the weight beside it")
    ),
    "siamese": Mini(Distances, numbers(16, 2, 4)),
    "gpt2": Mini(gpt2, tokens(), outputs=logits),
    "llama": Mini(
        llama,
        tokens(),
        outputs=logits,
        tolerance=3e-6,
    ),
    "bert": Mini(
        bert, tokens(), outputs=logits, missing=(1, "of tied embeddings the one shift that the output's bias takes up")
    ),
}


def count(mini: Mini) -> dict[str, float]:
    """The nullity, how much of it no group accounts for, and by how much a tangent changes an output."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # a model computes in the type that it was built in, if in no other
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = generic(mini.make())
        groups = list(find_symmetries(model, mini.batch()))
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        per_batch = mini.outputs(model(*mini.batch())).numel()
        batches = [mini.batch() for _ in range(int(1.3 * n_parameters / per_batch) + 3)]
        return unaccounted(groups, model, batches, mini.outputs, mini.tolerance)
    finally:
        torch.set_default_dtype(default)
