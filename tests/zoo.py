"""The zoo: one small model of each kind that people train, with random weights, and a batch for it.

`ZOO` maps names to cases. Nothing is downloaded. The sizes of the axes of one model differ wherever they can, so that
one axis taken for another shows. ``python -m tests.zoo`` prints what is found in each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries
from tests import nets
from tests.fingerprint import differences, fingerprint
from tests.minis import MINIS, count
from tests.module_lists import MODULE_LISTS, Ensemble, Heads, RoutedExperts
from tests.small_models import SMALL_MODELS, layer_scale_between_norms


@dataclass(frozen=True)
class Case:
    """A model and a batch for it: `build()` gives the same weights at each call, `batch()` the same data.

    Attributes:
        make: Builds the model, of whatever weights.
        batch: Makes the batch.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Any]

    def build(self) -> nn.Module:
        """The model, with random weights that are the same in every run."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(vocabulary: int, batch: int = 2, length: int = 7) -> Tensor:
    """Tokens from 3 up: the first ones have a meaning of their own in some models."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def of_vectors(make: Callable[[], nn.Module]) -> Case:
    return Case(make, lambda: numbers(6, 5))


def of_images(make: Callable[[], nn.Module], side: int = 8) -> Case:
    return Case(make, lambda: numbers(4, 3, side, side))


def of_labelled_images(make: Callable[[], nn.Module], side: int) -> Case:
    return Case(make, lambda: {"pixel_values": numbers(4, 3, side, side), "labels": torch.tensor([0, 3, 1, 4])})


def of_language(make: Callable[[], nn.Module], vocabulary: int = 31) -> Case:
    return Case(make, lambda: {"input_ids": tokens(vocabulary), "labels": tokens(vocabulary)})


def resnet(layer_type: str, widths: list[int]) -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=7, hidden_sizes=widths, depths=[2, 2], layer_type=layer_type, num_labels=5
        )
    )


def convnext() -> nn.Module:
    return transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(num_stages=2, hidden_sizes=[6, 10], depths=[2, 1], num_labels=5)
    )


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=31,
            n_positions=16,
            n_embd=15,
            n_inner=22,
            n_layer=2,
            n_head=3,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=31,
            hidden_size=15,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=22,
            max_position_embeddings=16,
        )
    )


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=15,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=22,
            image_size=16,
            patch_size=8,
            num_labels=5,
        )
    )


LLAMA = {
    "vocab_size": 31,
    "hidden_size": 36,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "use_cache": False,
}
"""The sizes of Llama, and of those that are built as it is."""


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def gemma() -> nn.Module:
    """As Llama, with gains that are kept as their differences from one."""
    config = transformers.GemmaConfig(**LLAMA, tie_word_embeddings=False, pad_token_id=0)
    return transformers.GemmaForCausalLM(config)


def mixtral(experts: str) -> nn.Module:
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=5, num_experts_per_tok=3)
    config._experts_implementation = experts
    return transformers.MixtralForCausalLM(config)


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=31,
            d_model=16,
            d_kv=5,
            d_ff=22,
            num_layers=2,
            num_heads=3,
            decoder_start_token_id=0,
            use_cache=False,
        )
    )


def mamba() -> nn.Module:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=31,
            hidden_size=10,
            state_size=5,
            num_hidden_layers=2,
            conv_kernel=3,
            time_step_rank=7,
            use_cache=False,
        )
    )


ZOO: dict[str, Case] = {
    "mlp relu": of_vectors(lambda: nets.mlp(nn.ReLU)),
    "mlp tanh": of_vectors(lambda: nets.mlp(nn.Tanh)),
    "mlp gelu": of_vectors(lambda: nets.mlp(nn.GELU)),
    "mlp identity": of_vectors(lambda: nets.mlp(nn.Identity)),
    "conv stack": of_images(nets.conv_stack),
    "resnet basic": of_labelled_images(lambda: resnet("basic", [8, 12]), 32),
    "resnet bottleneck": of_labelled_images(lambda: resnet("bottleneck", [12, 20]), 32),
    "mobilenet": of_images(nets.MobileNet),
    "convnext": of_labelled_images(convnext, 32),
    "group norm": of_images(nets.group_norm_net),
    "unet": of_images(nets.UNet),
    "densenet": of_images(nets.DenseNet),
    "gpt2": of_language(gpt2),
    "bert": of_language(bert),
    "vit": of_labelled_images(vit, 16),
    "encoder post-norm": Case(lambda: nets.Encoder(norm_first=False), lambda: numbers(2, 7, 5)),
    "encoder pre-norm": Case(lambda: nets.Encoder(norm_first=True), lambda: numbers(2, 7, 5)),
    "llama": of_language(llama),
    "gemma": of_language(gemma),
    "mixtral eager": of_language(lambda: mixtral("eager")),
    "mixtral batched": of_language(lambda: mixtral("batched_mm")),
    "t5": Case(t5, lambda: {"input_ids": tokens(31), "labels": tokens(31, length=4)}),
    "lstm": Case(lambda: nets.Recurrent(nn.LSTM), lambda: tokens(23)),
    "gru": Case(lambda: nets.Recurrent(nn.GRU), lambda: tokens(23)),
    "mamba": of_language(mamba),
    "lora": of_vectors(nets.lora_net),
    "layer scale": Case(layer_scale_between_norms, lambda: (numbers(16, 5),)),
    "heads in a list": Case(lambda: Heads(7, 3, 2), lambda: (numbers(2, 5, 7),)),
    "experts in a list": Case(lambda: RoutedExperts(4, 3, 6), lambda: (numbers(32, 4),)),
    "ensemble": Case(Ensemble, lambda: (numbers(6, 4),)),
    "vae": of_vectors(nets.VAE),
    "mlp-mixer": of_images(nets.Mixer),
    "graph convolution": Case(nets.GraphConvolution, lambda: (numbers(9, 5), nets.ring(9))),
    "siamese": Case(nets.Siamese, lambda: (numbers(6, 5), numbers(6, 5).flip(0))),
    "gan": of_vectors(nets.GAN),
}


@dataclass(frozen=True)
class Search:
    """What a search of a model of the zoo found, and what it left disturbed."""

    symmetries: Symmetries
    disturbed: tuple[str, ...]


@cache
def found(name: str) -> Symmetries:
    """The symmetries of a model of the zoo, searched for once for all tests."""
    return find_symmetries(ZOO[name].build(), ZOO[name].batch())


@cache
def search(name: str, training: bool, *kinds: str) -> Search:
    """Search a model in use for groups of some kinds, or of all; once for all tests."""
    model, batch = ZOO[name].build().train(training), ZOO[name].batch()
    use(model)
    before = fingerprint(model, batch)
    symmetries = find_symmetries(model, batch, kinds=kinds or None)
    return Search(symmetries, tuple(differences(before, fingerprint(model, batch))))


def use(model: nn.Module) -> None:
    """Give a model what one in training has: gradients, a frozen parameter, and hooks of all kinds that do nothing."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameter.register_hook(_hook)
            parameter.register_post_accumulate_grad_hook(_hook)
    next(model.parameters()).requires_grad_(False)
    for module in model.modules():
        module.register_forward_pre_hook(_hook)
        module.register_forward_hook(_hook)
        module.register_state_dict_pre_hook(_hook)
        module.register_load_state_dict_post_hook(_hook)
        if not list(module.children()):  # the others may return what no hook of a gradient can watch
            module.register_full_backward_pre_hook(_hook)
            module.register_full_backward_hook(_hook)


def _hook(*arguments: Any) -> None:
    """Do nothing."""


def table() -> Iterator[str]:
    """For each model: its groups by kind, the share of the parameters that they move, and how long it took."""
    yield f"{'model':20} {'parameters':>10} {'share':>6} {'seconds':>7}  groups"
    for name, case in ZOO.items():
        model = case.build()
        started = time.perf_counter()
        symmetries = find_symmetries(model, case.batch())
        seconds = time.perf_counter() - started
        kinds = [f"{count} {kind}" for kind, count in Counter(group.kind for group in symmetries).items()]
        found = [*kinds, *(f"rejected: {group}" for group in symmetries.rejected)]
        found += [f"no rule: {operation}" for operation in symmetries.without_rule]
        size = sum(parameter.numel() for parameter in model.parameters())
        yield f"{name:20} {size:10} {symmetries.share:6.1%} {seconds:7.2f}  {', '.join(found)}"


def completeness() -> Iterator[str]:
    """For each mini model: its continuous directions, those that no group accounts for, and of what family they are."""
    yield f"{'mini model':36} {'directions':>10} {'unaccounted':>11}  missing"
    for name, mini in {**MINIS, **SMALL_MODELS, **MODULE_LISTS}.items():
        counted = count(mini)
        yield f"{name:36} {counted['nullity']:10} {counted['unaccounted']:11}  {mini.missing[1]}"


if __name__ == "__main__":
    for line in (*table(), "", *completeness()):
        print(line, flush=True)
