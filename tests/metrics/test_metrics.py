"""Every metric as the ecosystem expects it: the checks of torchmetrics' own tester, and that memory is bounded."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from lightning_symmetry import functional, metrics
from tests.functional.test_neural_collapse import trained_classifier
from tests.metrics.cases import BATCHES, OF_RANK, cases
from tests.reference import representation as reference

CASES = cases()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
each = pytest.mark.parametrize("name", CASES)


def as_floats(value):
    return {key: one.item() for key, one in value.items()} if isinstance(value, dict) else value.item()


def approximately(value):
    return pytest.approx(as_floats(value), rel=1e-6, abs=1e-9)


def updated(case, batches=None):
    metric = case.build()
    for batch in batches or case.batches():
        metric.update(*batch)
    return metric


def test_every_metric_has_a_case():
    assert set(metrics.__all__) == set(CASES)
    assert all(issubclass(getattr(metrics, name), Metric) for name in CASES)


@each
def test_streamed_it_is_its_twin_of_all_samples_within_its_range(name):
    case = CASES[name]
    expected, value = case.expected(), updated(case).compute()
    assert as_floats(value) == approximately(expected)
    for one in value.values() if isinstance(value, dict) else [value]:
        assert one.shape == () and case.range[0] <= one <= case.range[1]
        assert not one.requires_grad


@each
def test_forward_tells_of_the_batch_and_compute_of_all(name):
    case = CASES[name]
    metric = case.build()
    for batch in case.batches():
        assert as_floats(metric(*batch)) == approximately(case.expected([batch]))
    assert as_floats(metric.compute()) == approximately(case.expected())


@each
def test_reset_forgets_all(name):
    case = CASES[name]
    metric = updated(case)
    metric.reset()
    for state, value in metric.metric_state.items():
        assert torch.equal(value, case.build().metric_state[state])
    for batch in case.batches()[:3]:
        metric.update(*batch)
    assert as_floats(metric.compute()) == approximately(case.expected(case.batches()[:3]))


@each
def test_it_can_be_pickled_and_copied_half_way(name):
    case = CASES[name]
    half = updated(case, case.batches()[:2])
    for metric in (pickle.loads(pickle.dumps(half)), copy.deepcopy(half), half.clone()):
        for batch in case.batches()[2:]:
            metric.update(*batch)
        assert as_floats(metric.compute()) == approximately(case.expected())


@each
def test_it_can_be_saved_and_loaded_half_way(name):
    case = CASES[name]
    half, metric = updated(case, case.batches()[:2]), case.build()
    assert not half.state_dict()
    half.persistent(True)
    metric.load_state_dict(half.state_dict())
    for batch in case.batches()[2:]:
        metric.update(*batch)
    assert as_floats(metric.compute()) == approximately(case.expected())


@each
def test_two_can_be_merged(name):
    case = CASES[name]
    first, second = (updated(case, case.batches()[part]) for part in (slice(None, 2), slice(2, None)))
    first.merge_state(second)
    assert as_floats(first.compute()) == approximately(case.expected())


@each
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_takes_features_of_any_type_on_any_device(name, device, dtype):
    case = CASES[name]
    batches = [
        tuple(part.to(dtype) if part.is_floating_point() else part for part in batch) for batch in case.batches()
    ]
    metric = case.build().to(device).half()
    for batch in batches:
        metric.update(*(part.to(device) for part in batch))
    assert all(state.dtype == torch.float64 and state.device.type == device for state in metric.metric_state.values())
    assert as_floats(metric.compute()) == approximately(case.expected(batches))


@each
def test_its_memory_does_not_depend_on_the_number_of_samples(name):
    case = CASES[name]
    few, many = updated(case, case.batches()[:1]), updated(case, case.batches() * 20)
    assert {key: state.shape for key, state in few.metric_state.items()} == {
        key: state.shape for key, state in many.metric_state.items()
    }


@each
def test_it_leaves_the_random_stream_and_keeps_no_graph(name):
    case = CASES[name]
    before = torch.get_rng_state()
    metric = case.build()
    metric.update(*(part.requires_grad_() if part.is_floating_point() else part for part in case.batches()[0]))
    metric.compute()
    assert not any(state.requires_grad for state in metric.metric_state.values())
    assert torch.equal(before, torch.get_rng_state())


HIGHER_IS_BETTER = {
    "AlphaReQ": None,  # about 1 is best
    "CanonicalAlignment": True,
    "CovarianceParticipationRatio": None,
    "CovarianceStableRank": None,
    "DormantFraction": False,
    "EffectiveRank": True,  # RankMe
    "Isotropy": None,
    "LinearCKA": None,
    "NC1": False,
    "NC2Equiangularity": False,
    "NC2Equinorm": False,
    "NC3": False,
    "NC4": True,  # agreement, 1 minus the mismatch of the paper
    "NESum": None,
    "NoiseImbalance": False,
    "TokenRankResidual": True,  # 0 is rank collapse
}


@each
def test_it_can_be_scripted(name):
    scripted = torch.jit.script(CASES[name].build())
    assert scripted.original_name == name


@each
def test_it_can_be_hashed_and_named(name):
    one, other = CASES[name].build(), CASES[name].build()
    assert len({one, other}) == 2
    assert repr(one) == f"{name}()"


@each
@pytest.mark.parametrize("constant", ["higher_is_better", "is_differentiable", "full_state_update"])
def test_its_constants_are_read_only(name, constant):
    with pytest.raises(RuntimeError, match=f"Can't change const `{constant}`"):
        setattr(CASES[name].build(), constant, True)


@each
def test_it_says_what_it_is(name):
    kind = type(CASES[name].build())
    assert kind.is_differentiable is False
    assert kind.full_state_update is False
    assert kind.higher_is_better is HIGHER_IS_BETTER[name]
    assert kind.plot_lower_bound is None or kind.plot_lower_bound <= CASES[name].range[0]
    assert kind.plot_upper_bound is None or CASES[name].range[1] <= kind.plot_upper_bound
    for part in ("Args:", "Example:", "Its twin"):
        assert part in " ".join(kind.__doc__.split()), part


@each
def test_it_can_be_plotted(name, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    case = CASES[name]
    metric = updated(case)
    figure, _ = metric.plot()
    figure.savefig(tmp_path / "one.png")
    figure, _ = metric.plot([metric(*batch) for batch in case.batches()])
    figure.savefig(tmp_path / "several.png")
    pyplot.close("all")


def test_before_the_first_batch_there_is_a_value_and_torchmetrics_warns():
    for case in CASES.values():
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            value = case.build().compute()
        assert all(torch.isfinite(one) for one in (value.values() if isinstance(value, dict) else [value]))


def test_a_collection_shares_states_and_gives_each_what_it_takes():
    """Six of one state are updated once; those of classes take the arguments that they name."""
    spectra = [name for name in CASES if len(CASES[name].data) == 1 and name != "DormantFraction"]
    collection = MetricCollection([CASES[name].build() for name in spectra])
    for batch in CASES[spectra[0]].batches():
        collection.update(*batch)
    assert len(collection.compute_groups) == 1
    for name, value in collection.compute().items():
        assert as_floats(value) == approximately(CASES[name].expected())
    collapse = MetricCollection([CASES[name].build() for name in CASES if name.startswith("NC")])
    weight = CASES["NC3"].data[2]
    for features, labels, predictions in CASES["NC4"].batches():
        collapse.update(features=features, labels=labels, predictions=predictions, weight=weight)
    for name, value in collapse.compute().items():
        assert as_floats(value) == approximately(CASES[name].expected())


class Model(LightningModule):
    """Logs an object, a collection and a dictionary."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 6)
        self.rank = metrics.EffectiveRank(6)
        self.collection = MetricCollection([metrics.Isotropy(6), metrics.NESum(6)])
        self.alignment = metrics.CanonicalAlignment(6)

    def training_step(self, batch, batch_idx):
        (features,) = batch
        self.rank(features)
        self.log("rank", self.rank, on_step=True, on_epoch=True)
        self.collection.update(features)
        self.log_dict(self.collection, on_step=False, on_epoch=True)
        self.alignment.update(features, features)
        return self.layer(features).sum()

    def on_train_epoch_end(self):
        self.log_dict(self.alignment.compute())
        self.alignment.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_module_logs_them_epoch_by_epoch(tmp_path):
    (features,) = CASES["EffectiveRank"].data
    trainer = Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(Model(), DataLoader(TensorDataset(features), 10))
    logged = trainer.callback_metrics
    assert logged["rank_epoch"].item() == pytest.approx(functional.effective_rank(features).item(), rel=1e-5)
    assert logged["Isotropy"].item() == pytest.approx(functional.isotropy(features).item(), rel=1e-5)
    assert logged["NESum"].item() == pytest.approx(functional.nesum(features).item(), rel=1e-5)
    assert logged["activation_gradient"].item() == pytest.approx(1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two gloo processes found, with uneven batches and numbers of batches."""
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [sys.executable, "-m", "tests.metrics.cases", str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@each
def test_two_processes_find_what_one_finds(two_processes, name):
    case = CASES[name]
    for found in two_processes:
        assert as_floats(found[name]["value"]) == approximately(case.expected())
        assert found[name]["unsynced"]
        for step, value in enumerate(found[name]["steps"]):
            both = [case.batches()[batches[step]] for batches in OF_RANK]
            assert as_floats(value) == approximately(case.expected(both))


def test_neural_collapse_of_a_trained_classifier_streamed_agrees_with_papyan_on_the_full_batch():
    """In batches of unequal sizes, whose order mixes the classes; NC4 on all samples."""
    features, labels, weight, logits = trained_classifier()
    weight = weight.detach()
    n_classes, width = weight.shape
    expected = reference.neural_collapse(
        features.double().numpy(), labels.numpy(), weight.double().numpy(), logits.numpy()
    )
    collapse = MetricCollection(
        {
            "nc1": metrics.NC1(n_classes, width),
            "nc2_equinorm": metrics.NC2Equinorm(n_classes, width),
            "nc2_equiangularity": metrics.NC2Equiangularity(n_classes, width),
            "nc3": metrics.NC3(n_classes, width),
            "nc4": metrics.NC4(n_classes, width),
        }
    )
    for part in torch.arange(len(features)).split([1, 700, 96, len(features) - 797]):
        predictions = logits[part].argmax(-1)
        collapse.update(features=features[part], labels=labels[part], weight=weight, predictions=predictions)
    assert as_floats(collapse.compute()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [64, 256])
def test_cka_over_mini_batches_agrees_with_all_samples_at_once(batch_size):
    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(2, 2048, 8, generator=generator)
    second = signal @ torch.randn(8, 20, generator=generator) + 2 * torch.randn(2048, 20, generator=generator)
    first = torch.cat([signal, noise], dim=1)
    metric = metrics.LinearCKA()
    for pair in zip(first.split(batch_size), second.split(batch_size), strict=True):
        metric.update(*pair)
    full = functional.linear_cka(first, second).item()
    assert 0.3 < full < 0.7
    assert metric.compute().item() == pytest.approx(full, abs=1e-2)


def test_the_effective_rank_streamed_is_rankme_as_published():
    features, *_ = trained_classifier()
    metric = metrics.EffectiveRank(features.shape[1])
    for batch in features.split(300):
        metric.update(batch)
    assert metric.compute().item() == pytest.approx(reference.rankme(features.double().numpy()), rel=1e-4)


def test_a_sample_smaller_than_the_data_is_the_same_on_two_processes_and_on_one(two_processes):
    metric = metrics.NC4(4, 6, max_samples=10)
    for batch in CASES["NC4"].batches():
        metric.update(*batch)
    assert metric.sample[:, 0].isfinite().all() and sum(BATCHES) > 10
    assert {metric.compute().item()} == {found["sampled"].item() for found in two_processes}


def test_arguments_out_of_their_range_are_refused():
    for build in (lambda: metrics.EffectiveRank(0), lambda: metrics.NC1(3, 0), lambda: metrics.DormantFraction(0)):
        with pytest.raises(ValueError, match="num_features must be a whole number of at least 1, got 0"):
            build()
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 1, got 0"):
        metrics.NC1(0, 4)
    with pytest.raises(ValueError, match="max_samples must be a whole number of at least 1, got 0"):
        metrics.NC4(2, 4, max_samples=0)
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        metrics.DormantFraction(3, threshold=-1)
    with pytest.raises(ValueError, match=r"features must be \(n_samples, 3\), as num_features=3 says; got .*\(2, 4\)"):
        metrics.EffectiveRank(3).update(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"predictions must be \(2,\).*argmax"):
        metrics.NC4(2, 3).update(torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"weight must be \(2, 3\), got shape \(3, 2\)"):
        metrics.NC3(2, 3).update(torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(3, 2))
