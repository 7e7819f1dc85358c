"""Several processes train like one: replicated, sharded, and with shared tokens."""

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from model.parallel import Ranks, joined_ranks, parallelize
from model.trainer import Trainer
from tests.model.agreement import assert_agrees, assert_states_agree, distance, one_process
from tests.model.launching import run_cases
from tests.model.parallel_worker import INPUTS, Case, loss_and_gradients, stirred_network, training_options
from tests.model.tiny_training import fresh_network, trained

STEPS = 20


@pytest.fixture(scope="module")
def alone():
    return one_process(STEPS)


def trainings(folder: Path, ways: dict[str, tuple[str, int]]) -> dict[str, Case]:
    return {
        name: Case(str(folder / name), strategy=strategy, sequence_parallel=shared, steps=STEPS)
        for name, (strategy, shared) in ways.items()
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Every case for two processes, in one start of them."""
    folder = tmp_path_factory.mktemp("two")
    cases = trainings(folder, {"ddp": ("ddp", 1), "fsdp": ("fsdp", 1), "sequence": ("ddp", 2)})
    follow = {"ddp-then-fsdp": ("fsdp", 1), "fsdp-then-sequence": ("fsdp", 2), "sequence-then-ddp": ("ddp", 1)}
    for name, case in trainings(folder, follow).items():
        case.checkpoint = str(folder / name.split("-")[0] / "rank-0" / "step-10")
        cases[name] = case
    for index, name in enumerate(INPUTS):
        strategy = ("ddp", "fsdp")[index % 2]
        recompute = name in ("few-frames", "images")
        cases[name] = Case(
            str(folder / name), strategy=strategy, sequence_parallel=2, input=name, recompute=recompute
        )  # fmt: skip
    run_cases(list(cases.values()), 2, folder)
    return cases


@pytest.mark.parametrize("way", ["ddp", "fsdp", "sequence"])
def test_two_ranks_train_like_one(way, two_ranks, alone):
    assert_agrees(two_ranks[way], 2, *alone)


@pytest.mark.parametrize("way", ["ddp-then-fsdp", "fsdp-then-sequence", "sequence-then-ddp"])
def test_a_run_goes_on_under_another_strategy(way, two_ranks, alone):
    assert_agrees(two_ranks[way], 2, *alone)


def test_one_process_goes_on_with_what_shared_tokens_trained(two_ranks, alone):
    trainer = Trainer(stirred_network(), training_options(STEPS))
    trainer.restore(load_checkpoint(Path(two_ranks["sequence"].folder) / "rank-1" / "step-10"))
    assert_states_agree(trained(trainer)[1][-1], alone[1])


def assert_same_loss_and_gradients(case: Case, world_size: int) -> None:
    network = stirred_network()
    expected = loss_and_gradients(network, network, case.input)
    for rank in range(world_size):
        found = load_file(Path(case.folder) / f"rank-{rank}" / "result.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert distance(found[name], tensor) <= 1e-5, name


@pytest.mark.parametrize("name", INPUTS)
def test_shared_tokens_give_the_loss_and_gradients_of_one_process(name, two_ranks):
    assert_same_loss_and_gradients(two_ranks[name], 2)


@pytest.mark.slow
def test_one_and_four_ranks_train_like_one(tmp_path, alone):
    single = trainings(tmp_path / "one", {"ddp": ("ddp", 1), "fsdp": ("fsdp", 1)})
    run_cases(list(single.values()), 1, tmp_path / "one")
    for case in single.values():
        assert_agrees(case, 1, *alone)
    ways = {"ddp": ("ddp", 1), "fsdp": ("fsdp", 1), "sequence": ("ddp", 4), "ddp+sequence": ("ddp", 2)}
    four = trainings(tmp_path, ways | {"fsdp+sequence": ("fsdp", 2)})
    inputs = {name: Case(str(tmp_path / name), sequence_parallel=4, input=name) for name in INPUTS}
    run_cases([*four.values(), *inputs.values()], 4, tmp_path)
    for case in four.values():
        assert_agrees(case, 4, *alone)
    for case in inputs.values():
        assert_same_loss_and_gradients(case, 4)


@pytest.mark.slow
def test_compiled_blocks_share_tokens(tmp_path):
    case = Case(str(tmp_path / "compiled"), sequence_parallel=2, input="video", compiled=True)
    run_cases([case], 2, tmp_path)
    assert_same_loss_and_gradients(case, 2)


@pytest.mark.parametrize(
    ("strategy", "launched", "message"),
    [
        ("none", "1", "sequence_parallel is 2 and parallel 'none'"),
        ("colossalai", "2", "sequence_parallel is 2 and parallel 'colossalai'"),
        ("ddp", "3", "3 processes cannot form groups of sequence_parallel 2"),
    ],
)
def test_groups_that_cannot_be_formed_are_refused(monkeypatch, strategy, launched, message):
    monkeypatch.setenv("WORLD_SIZE", launched)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=message), joined_ranks(strategy, 2):
        pass


@pytest.mark.skipif(importlib.util.find_spec("colossalai") is not None, reason="ColossalAI is installed")
def test_a_strategy_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(ValueError, match=r"requirements-colossalai\.lock, or choose 'ddp' or 'fsdp'"):
        parallelize(fresh_network(), Ranks(), "colossalai")
