"""Each benchmark runs at a toy size and prints its lines; what the figures are is not looked at."""

import re

import pytest
from typer import Typer
from typer.testing import CliRunner

from tests.benchmarks import stage_shapes
from tests.benchmarks.__main__ import Benchmark, run
from tests.benchmarks.measuring import Figure, Settings, show

FIGURE = re.compile(r"^\w+: .+: (nan|[\d,.]+) \S+.*$")
EXPECTED = {
    Benchmark.NETWORK: ("over a 64-square matmul, FLOP/s", "ours over the peer, steps/s", "videos 1 x 4 x 32 x 32"),
    Benchmark.BUCKETS: ("at once over one by one, keep = 1", "clips table to plan file, keep = 1", "peak memory"),
    Benchmark.CURATE: ("curate.decode_ratio",),
    Benchmark.STORAGE: (
        "shards: reading over one .npy file a sample",
        "save and publish over plain copy",
        "loop blocked at one checkpoint a minute",
        "SIGKILL in the middle of a save",
    ),
    Benchmark.PACKING: ("copying over encoding", "random clips over one object a clip"),
    Benchmark.PLANNER: ("longest over mean step, planned", "step time, predicted over measured"),
    Benchmark.TAKEDOWN: ("split, 2,000 clips", "takedown of a tenth, 2,000 clips, 3 checkpoints"),
    Benchmark.DUPLICATES: ("look the same, 500 clips", "show the same, 500 clips"),
    Benchmark.SAMPLING: ("one sample: guidance in one pass over two", "one guided sample"),
}


def invoke(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(run)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("benchmark", list(Benchmark))
def test_runs_and_prints(benchmark: Benchmark) -> None:
    code, output = invoke(benchmark.value, "--toy", "--rounds", "1", "--threads", "1", "--cpu-time")
    assert code == 0, output
    machine, *lines = output.splitlines()
    assert machine.startswith("torch ")
    assert lines and all(FIGURE.match(line) for line in lines), output
    for expected in EXPECTED[benchmark]:
        assert expected in output


def test_stage_shapes_are_those_of_the_preset() -> None:
    shapes = {(b.resolution, b.num_frames, b.batch_size) for b in stage_shapes.squarest_buckets("stage1")}
    assert ("144p", 16, 6) in shapes and ("1024", 1, 3) in shapes
    assert ("240p", 64, None) not in shapes  # a barrier holds no batch


def test_stage_shapes_run_with_the_trainer() -> None:
    figures = stage_shapes.run(Settings(toy=True, rounds=1, stage="stage2"))
    assert [figure.unit for figure in figures[1:5]] == ["s", "1/s", "1/s", "x"]
    assert all(figure.value > 0 for figure in figures)


def test_asking_for_a_gpu_that_is_not_there_is_one_sentence() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, output = invoke("network", "--device", "cuda")
    assert code == 2 and "torch sees no GPU" in output


def test_processor_time_with_several_threads_is_refused() -> None:
    code, output = invoke("buckets", "--cpu-time", "--threads", "2")
    assert code == 2 and "--threads 1" in output


def test_figures_are_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    show("demo", [Figure("speed", 1234.5, "rows/s", 1000.0, 2000.0)], Console(force_terminal=True, width=100))
    shown = capsys.readouterr().out
    assert "median" in shown and "1,234" in shown and "1,000 - 2,000" in shown
