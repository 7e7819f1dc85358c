"""Probing: the real trainer takes the steps, every case is timed and weighed, memory is this process's."""

import itertools

import torch

from model.batch_sizes import kept_buckets
from model.buckets import BucketTable
from model.cost import Workload, fit_costs
from model.diffusion_config import FlowConfig
from model.probe import Case, measure, peak_bytes, probe_trainer, random_batch, reset_peak, small_cases
from tests.model.tiny_training import CONFIG, MASKS

TABLE = BucketTable(
    buckets={"a": {1: (1.0, 8), 4: (0.5, 2), 8: (0.0, None)}},
    custom_resolutions={"a": [[32, 32], [32, 48]]},  # type: ignore[dict-item]
)
WORKLOAD = Workload(CONFIG, 5, precision="fp32")


def test_small_batches_of_every_pair_are_probed() -> None:
    cases = [(c.bucket.num_frames, c.bucket.width, c.batch_size) for c in small_cases(TABLE)]
    assert cases == [(4, 32, 1), (4, 32, 2), (4, 48, 2), (1, 32, 2), (1, 32, 4), (1, 48, 4)]


def test_every_case_is_measured_in_real_steps() -> None:
    trainer = probe_trainer(WORKLOAD, diffusion=FlowConfig(), masks=MASKS)
    cases = small_cases(TABLE)
    before = trainer.network.final_layer.linear.weight.detach().clone()
    ticks = itertools.count()
    measured = measure(trainer, cases, WORKLOAD, rounds=2, clock=lambda: float(next(ticks)))
    assert [(m.bucket, m.batch_size) for m in measured] == [tuple(case) for case in cases]
    assert all(m.seconds == 1.0 and m.fits for m in measured)  # one tick between the beginning and the end of a step
    assert trainer.step == len(cases) * 3 + 1
    assert not torch.equal(before, trainer.network.final_layer.linear.weight)  # the optimizer really stepped
    again = measure(trainer, cases[:1], WORKLOAD, rounds=1)
    assert 0 < again[0].seconds < 60
    assert fit_costs(WORKLOAD, measured).seconds(cases[0].bucket, 1) > 0


def test_batches_have_the_shape_of_their_bucket() -> None:
    bucket = kept_buckets(TABLE)["a", 4][1]
    batch = random_batch(WORKLOAD, Case(bucket, 3))
    assert batch.latents.shape == (3, 4, 4, 4, 6)
    assert (batch.text_features.shape, int(batch.text_mask.sum())) == ((3, 5, 8), 15)
    assert (batch.num_frames, batch.height, batch.width) == (4, 32, 48)


def test_the_peak_is_seen_and_forgotten() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    low = peak_bytes(device)
    torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_bytes(device) > low + (48 << 20)
    reset_peak(device)
    assert peak_bytes(device) < low + (32 << 20)
