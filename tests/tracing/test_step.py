"""One step as a pure function: what it leaves as it was."""

import copy

import pytest
import torch
import torch.distributed.nn
from lightning.pytorch import LightningModule
from torch import distributed, nn
from torch.distributed import _functional_collectives
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.step import Step, undisturbed

GENERATOR = torch.Generator().manual_seed(0)
BATCH = (torch.randn(8, 5, generator=GENERATOR), torch.randint(0, 3, (8,), generator=GENERATOR))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def found(module):
    before = [parameter.clone() for parameter in module.parameters()]
    groups = [group.name for group in find_symmetries(module, BATCH, kinds=["permutation"])]
    assert all(map(torch.equal, before, module.parameters()))
    return groups


def test_without_a_trainer_a_step_has_the_optimizers_that_its_module_configures():
    class Manual(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            self.lr_schedulers().step()
            return self.optimizers().param_groups[0]["lr"] * loss

    assert found(Manual()) == ["net.0"]


def test_an_optimizer_that_a_module_keeps_moves_nothing_and_leaves_gradients():
    class Keeping(Module):
        def __init__(self):
            super().__init__()
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.5)

        def training_step(self, batch, batch_idx):
            self.optimizer.step()
            self.optimizer.zero_grad()
            return super().training_step(batch, batch_idx)

    module = Keeping()
    F.cross_entropy(module(BATCH[0]), BATCH[1]).backward()
    gradient = module.net[0].weight.grad.clone()
    assert found(module) == ["net.0"]
    assert torch.equal(module.net[0].weight.grad, gradient)


def test_each_run_is_of_a_fresh_copy():
    class Averaging(Module):
        def __init__(self):
            super().__init__()
            self.average = torch.zeros(3)
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            self.average.mul_(0.9).add_(self.steps)
            return super().training_step(batch, batch_idx) + self.average.sum()

    step = Step(Averaging(), BATCH)
    first, second = (step(step.parameters, step.buffers, BATCH).preserved[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_module_may_keep_a_tensor_with_a_gradients_history():
    module = Module()
    module.last = module(BATCH[0])
    assert found(module) == ["net.0"]


def test_a_step_that_asks_for_gradients_leaves_none():
    class Differentiating(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            loss.backward()
            assert self.net[0].weight.grad is not None
            return loss

    module = Differentiating()
    step = Step(module, BATCH)
    step.rehearse(step.batch)
    assert step.gradients
    assert found(module) == ["net.0"]
    assert module.net[0].weight.grad is None
    assert torch.is_grad_enabled()


def test_a_step_that_optimizes_by_hand_need_not_record_gradients():
    class Manual(Module):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx).backward()

    step = Step(Manual(), BATCH)
    step.rehearse(step.batch)
    assert not step.gradients
    assert found(Manual()) == ["net.0"]


def test_a_step_may_turn_inference_mode_on_within():
    class Watched(Module):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.watch(logits)
            return F.cross_entropy(logits, batch[1])

        @torch.inference_mode()
        def watch(self, logits):
            self.largest = logits.detach().softmax(-1).amax(-1).mean()

    mode = torch._C._InferenceMode
    assert found(Watched()) == ["net.0"]
    assert torch._C._InferenceMode is mode


def test_lengths_may_be_given_as_numbers():
    class Spoken(Module):
        def training_step(self, batch, batch_idx):
            scores = self(batch[0]).log_softmax(-1).unflatten(0, (2, 4)).transpose(0, 1)
            return F.ctc_loss(scores, torch.tensor([[1, 2], [2, 1]]), (4, 4), (2, 2))

    assert found(Spoken()) == ["net.0"]


def test_what_a_step_changes_in_place_is_told():
    class Writing(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("other", torch.zeros(()))

        def training_step(self, batch, batch_idx):
            self.count += 1
            self.net[2].bias.data.clamp_(-0.01, 0.01)
            return super().training_step(batch, batch_idx)

    module = Writing()
    step = Step(module, BATCH)
    step.rehearse(step.batch)
    assert step.written == {"count", "net.2.bias"}
    assert module.count == 0


class Teacher(Module):
    """Follows a net that it begins as: at first it is written to, and stays what it is."""

    def __init__(self, by):
        super().__init__()
        self.follower, self.by = copy.deepcopy(self.net).requires_grad_(False), by

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for mine, others in zip(self.follower.parameters(), self.net.parameters(), strict=True):
                if self.by == "data":
                    mine.data = mine.data * 0.5 + others.data * 0.5
                else:
                    mine.data.mul_(0.5).add_(others.data, alpha=0.5)
            targets = self.follower(batch[0])
        return F.mse_loss(self(batch[0]).tanh(), targets)


@pytest.mark.parametrize("by", ["data", "in place"])
def test_what_a_step_writes_to_is_told_also_where_it_stays_what_it_is(by):
    step = Step(module := Teacher(by), BATCH)
    step.rehearse(step.batch)
    assert step.written == {f"follower.{name}" for name, _ in module.net.named_parameters()}
    assert found(module) == ["net.0", "net.2"]


def test_a_generator_outside_of_the_module_is_put_back():
    generator = torch.Generator().manual_seed(1)

    class Drawing(Module):
        def training_step(self, batch, batch_idx):
            noise = torch.randint(0, 5, (5,), generator=generator) + torch.rand(5, generator=generator)
            return super().training_step((batch[0] + noise, batch[1]), batch_idx)

    before = generator.get_state()
    found(Drawing())
    assert torch.equal(generator.get_state(), before)


def test_flags_of_the_backends_are_put_back_and_no_other_is_touched():
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        with pytest.raises(KeyboardInterrupt), undisturbed():
            assert not torch.backends.mkldnn.enabled
            raise KeyboardInterrupt
        assert torch.backends.mkldnn.enabled
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "talk",
    [
        lambda: distributed.all_reduce(torch.ones(2)),
        lambda: distributed.all_gather([torch.ones(2)], torch.ones(2)),
        lambda: distributed.broadcast(torch.ones(2), 0),
        lambda: distributed.barrier(),
        lambda: distributed.all_gather_object([None], "object"),
        lambda: distributed.broadcast_object_list(["object"], 0),
        lambda: distributed.nn.functional.all_reduce(torch.ones(2)),
        lambda: _functional_collectives.all_reduce(torch.ones(2), "sum", distributed.group.WORLD),
    ],
)
def test_a_step_that_talks_to_other_processes_is_refused_before_it_talks(talk):
    class Talking(Module):
        def training_step(self, batch, batch_idx):
            talk()
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match=r"the step talks to other processes \(_?c10d"):
        find_symmetries(Talking(), BATCH)
