"""ColossalAI's Booster as a strategy: `make test-colossalai` runs this in an environment of its own."""

import importlib.util
from pathlib import Path

import pytest

from model.checkpoint import load_checkpoint
from model.trainer import Trainer
from tests.model.agreement import assert_agrees, assert_states_agree, one_process
from tests.model.launching import run_cases
from tests.model.parallel_worker import Case, stirred_network, training_options
from tests.model.tiny_training import trained

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="ColossalAI has an environment of its own"
)
PLUGINS = ("ddp", "zero1")
STEPS = 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each plugin from the start, again from its own middle, and from the middle of another strategy."""
    folder = tmp_path_factory.mktemp("booster")
    cases = {}

    def add(name: str, strategy: str, plugin: str, checkpoint: str = "") -> None:
        middle = str(folder / checkpoint / "rank-0" / "step-10") if checkpoint else ""
        cases[name] = Case(str(folder / name), strategy=strategy, plugin=plugin, steps=STEPS, checkpoint=middle)

    for plugin in PLUGINS:
        add(plugin, "colossalai", plugin)
        add(f"{plugin}-again", "colossalai", plugin, plugin)
    add("zero1-then-fsdp", "fsdp", "", "zero1")
    run_cases(list(cases.values()), 2, folder, "tests.colossalai.worker")
    return cases


@pytest.fixture(scope="module")
def alone():
    return one_process(STEPS)


@pytest.mark.parametrize("name", [*PLUGINS, "zero1-then-fsdp"])
def test_two_ranks_train_like_one(name, runs, alone):
    assert_agrees(runs[name], 2, *alone)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_resumed_run_ends_with_the_same_bytes(plugin, runs):
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        whole, again = (Path(runs[run].folder) / "rank-0" / "step-20" / name for run in (plugin, f"{plugin}-again"))
        assert whole.read_bytes() == again.read_bytes(), name


def test_one_process_goes_on_with_what_a_plugin_trained(runs, alone):
    trainer = Trainer(stirred_network(), training_options(STEPS))
    trainer.restore(load_checkpoint(Path(runs["zero1"].folder) / "rank-1" / "step-10"))
    assert_states_agree(trained(trainer)[1][-1], alone[1])


def test_sharding_without_a_gpu_is_refused(tmp_path):
    case = Case(str(tmp_path / "zero1"), strategy="colossalai", plugin="zero1", steps=1)
    with pytest.raises(AssertionError, match="'zero1' needs a GPU; choose its plugin 'ddp', or parallel 'fsdp'"):
        run_cases([case], 1, tmp_path)
