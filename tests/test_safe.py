"""Nothing is loaded that could run, nothing is shown that could, and nothing of the environment is written."""

import ast
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_symmetry import RepresentationMonitor
from tests.callbacks.trainings import Net, monitors, train

PACKAGE = Path(__file__).parents[1] / "lightning_symmetry"
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
EVALUATES = {"eval", "exec"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_is_loaded_and_no_text_is_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.partition(".")[0] for name in names} & LOADERS, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in EVALUATES, ast.unparse(node)
            if called in ("torch.load", "numpy.load", "np.load"):
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert settings.get("weights_only") == "True" or settings.get("allow_pickle") == "False", called


EVIL = "<script>alert(1)</script>"


class Evil(Net):
    """Its layer is named so that a browser would run the name."""

    def __init__(self):
        super().__init__()
        self.add_module(EVIL.replace(".", ""), nn.Linear(6 * 4 * 4, 8))

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images)))
        return self.head(torch.tanh(self.get_submodule(EVIL)(features.flatten(1))))


def test_a_module_named_as_a_script_is_shown_and_not_run(tmp_path):
    """The name of the module, of the logger's version, and of the model's class end in the report as text."""
    callbacks = [*monitors(), RepresentationMonitor(every_n_train_steps=3, on_error="raise")]
    Evil.__name__ = f"Evil{EVIL}"
    train(tmp_path, callbacks, Evil(), logger=CSVLogger(tmp_path, version="<img src=x onerror=alert(1)>"))
    (report,) = tmp_path.rglob("report.html")
    page = report.read_text()
    assert "alert(1)" in page
    assert EVIL not in page
    assert "<img src=x" not in page
    assert any("script" in key for key in callbacks[0].history.keys("spectrum/effective_rank/"))


SECRET = "6f1d2c-of-the-environment"


def test_nothing_of_the_environment_or_of_credentials_is_written(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SOME_VARIABLE"):
        monkeypatch.setenv(name, SECRET)
    home = tmp_path / SECRET  # the folder of a home has the name of a user
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    callbacks = [*monitors(), RepresentationMonitor(every_n_train_steps=3, on_error="raise")]
    train(tmp_path / "runs", callbacks, logger=CSVLogger(tmp_path / "runs", version=0))
    for callback in callbacks:
        assert SECRET not in json.dumps(callback.config(), default=str)
        assert SECRET not in json.dumps(callback.state_dict())
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"history.jsonl", "report.html"}
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
