import math
import random
from dataclasses import replace

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.diffusion_config import FlowConfig, IDDPMConfig
from model.objective import stream_seed
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks
from model.sentinel import Sentinel
from model.sentinel_config import SentinelConfig
from model.trainer import Trainer, TrainingDivergedError
from tests.model.tiny_training import CONFIG, fresh_network, make_batch, options, trained


def assert_same(ours, theirs):
    assert ours.progress == theirs.progress
    for kind in ("weights", "ema", "optimizer"):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == others.keys()
        different = [name for name in mine if not torch.equal(mine[name], others[name])]
        assert not different


def test_logs_and_saves_at_the_steps_asked_for():
    points, states = trained(Trainer(fresh_network(), options(log_every=4)))
    assert [p.step for p in points] == [4, 5, 8, 10, 12]
    assert [p.steps for p in points] == [4, 1, 3, 2, 2]
    assert [s.progress.step for s in states] == [5, 10, 12]
    assert all(p.samples == 3 * p.steps and p.tokens > 0 and p.flops > 0 and p.seconds > 0 for p in points)


def test_points_tell_of_every_bucket_and_quarter_of_the_timesteps():
    points, _ = trained(Trainer(fresh_network(), options(batches_per_step=2, log_every=12, save_every=12)))
    (point,) = points
    images, clips = sorted(point.buckets, key=lambda bucket: bucket.bucket)
    assert (images.bucket, images.batches, images.samples) == ("1x32x48", 8, 24)
    assert (clips.bucket, clips.batches, clips.samples) == ("4x32x48", 16, 48)
    assert (images.loss * 24 + clips.loss * 48) / 72 == pytest.approx(point.loss, rel=1e-5)
    assert len(point.quartile_losses) == 4 and all(0 < loss < 10 for loss in point.quartile_losses)
    assert 0 < images.seconds < point.seconds and images.peak_bytes > 2**20
    assert 0 <= point.wait_s < point.seconds and len(point.resident_bytes) == 1
    told = point.rates(peak_flops_per_s=1e12)
    assert {
        "loss_bucket/4x32x48",
        "step_time_s/1x32x48",
        "mfu",
        "data_wait_share",
        "resident_mib/rank_0",
    } <= told.keys()
    assert told["mfu"] == pytest.approx(point.flops / point.seconds / 1e12)


def test_the_loss_falls_on_one_batch_seen_again_and_again():
    network = fresh_network(CONFIG.model_copy(update={"class_dropout_prob": 0.0}))
    trainer = Trainer(network, options(steps=120, masks=None, log_every=20, save_every=1000))
    points = []
    trainer.fit(lambda index: make_batch(0), log=points.append, save=lambda state: None)
    assert points[-1].loss < 0.9 * points[0].loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("diffusion", [FlowConfig(), IDDPMConfig()])
def test_going_on_from_any_checkpoint_gives_the_same_bits(tmp_path, precision, diffusion):
    config = CONFIG.model_copy(update={"pred_sigma": isinstance(diffusion, IDDPMConfig)})
    asked = options(precision=precision, diffusion=diffusion)
    points, states = trained(Trainer(fresh_network(config), asked))
    for middle in states[:-1]:
        folder = tmp_path / str(middle.progress.step)
        folder.mkdir()
        save_checkpoint(folder, middle)
        resumed = Trainer(fresh_network(config, seed=99), asked)
        resumed.restore(load_checkpoint(folder))
        later_points, later_states = trained(resumed)
        assert_same(later_states[-1], states[-1])
        told = [(p.step, p.loss, p.grad_norm) for p in points if p.step > middle.progress.step]
        assert [(p.step, p.loss, p.grad_norm) for p in later_points] == told


def test_a_saved_state_does_not_change_under_later_steps():
    _, states = trained(Trainer(fresh_network(), options()))
    assert not torch.equal(states[0].weights["t_block.1.weight"], states[-1].weights["t_block.1.weight"])


def test_a_new_stage_takes_over_weights_and_if_wanted_moments():
    parent = trained(Trainer(fresh_network(), options(steps=4)))[1][-1]
    follower = Trainer(fresh_network(seed=3), options(stage="stage2"))
    follower.start_from(parent)
    carried = follower.state()
    assert carried.progress.step == 0 and carried.progress.stage == "stage2"
    for kind in ("weights", "ema", "optimizer"):
        assert all(torch.equal(t, getattr(parent, kind)[name]) for name, t in getattr(carried, kind).items())
    bare = Trainer(fresh_network(seed=3), options())
    bare.start_from(parent, carry_optimizer=False)
    assert not bare.state().optimizer


def test_a_parent_of_another_size_is_refused():
    parent = Trainer(fresh_network(CONFIG.model_copy(update={"depth": 1})), options()).state()
    with pytest.raises(ValueError, match=r"blocks\.1\..* does not fit this network"):
        Trainer(fresh_network(), options()).start_from(parent)


def test_only_what_is_trainable_moves():
    parent = trained(Trainer(fresh_network(), options(steps=3)))[1][-1]
    trainer = Trainer(fresh_network(CONFIG.model_copy(update={"freeze": "not_temporal"})), options(steps=4))
    trainer.start_from(parent, carry_optimizer=False)
    after = trained(trainer)[1][-1]
    moved = {name for name, t in after.weights.items() if not torch.equal(t, parent.weights[name])}
    assert moved and all("attn_temp" in name for name in moved)
    assert all("attn_temp" in name for name in after.optimizer)


def poisoned(indices):
    def batches(index):
        batch = make_batch(index)
        return replace(batch, latents=batch.latents * math.nan) if index in indices else batch

    return batches


def test_a_step_without_a_finite_loss_is_skipped_and_counted():
    states, points = [], []
    trainer = Trainer(fresh_network(), options(steps=5, log_every=1))
    trainer.fit(poisoned({2}), log=points.append, save=states.append)
    assert states[-1].progress.skipped_steps == 1 and states[-1].progress.step == 5
    assert math.isnan(points[2].loss) and math.isfinite(points[3].loss)
    assert all(torch.isfinite(t).all() for t in states[-1].weights.values())
    assert float(states[-1].optimizer["t_block.1.weight.step"]) == 4


def test_training_gives_up_after_several_such_steps_in_a_row():
    trainer = Trainer(fresh_network(), options(save_every=100))
    with pytest.raises(TrainingDivergedError, match=r"loss is nan at step 8, the last of 5 steps in a row.*; lower"):
        trainer.fit(poisoned(range(3, 12)), log=lambda point: None, save=lambda state: None)
    assert trainer.skipped_steps == 5 and trainer.step == 7


def go_back_to(states):
    """The newest of the saved states that lies before the steps to leave out; what was asked is remembered."""
    asked = []

    def go_back(window):
        asked.append(window)
        return next(s for s in reversed(states) if s.progress.step <= window.first_step)

    return go_back, asked


LONG = {"steps": 24, "save_every": 4, "sentinel": SentinelConfig(max_skipped_in_a_row=3, lookback_steps=2)}


def test_it_goes_back_and_leaves_out_what_led_astray(tmp_path):
    trainer, points, states = Trainer(fresh_network(), options(**LONG)), [], []
    go_back, asked = go_back_to(states)
    trainer.fit(poisoned(range(10, 13)), log=points.append, save=states.append, go_back=go_back)
    # the three bad steps and two before them, from the checkpoint after step 8 on
    assert [(w.first_step, w.end_step) for w in asked] == [(8, 13)] and asked[0].reason == "the loss is nan"
    last = states[-1]
    assert last.progress.left_out == (asked[0],) and last.progress.step == 24
    # a run that never reads them ends the same, and so does one that goes on from any later checkpoint
    by_hand = Trainer(fresh_network(), options(**LONG))
    by_hand.left_out = last.progress.left_out
    read, others = [], []

    def batches(index):
        read.append(index)
        return make_batch(index)

    by_hand.fit(batches, log=lambda point: None, save=others.append)
    assert read == [*range(8), *range(13, 24)]
    assert_same(others[-1], last)
    middle = next(s for s in states if s.progress.step == 12 and s.progress.left_out)
    save_checkpoint(tmp_path, middle)
    resumed = Trainer(fresh_network(seed=5), options(**LONG))
    resumed.restore(load_checkpoint(tmp_path))
    assert_same(trained(resumed)[1][-1], last)


def test_it_gives_up_when_going_back_does_not_help():
    asked = options(**LONG | {"sentinel": SentinelConfig(max_skipped_in_a_row=3, lookback_steps=0, max_rollbacks=2)})
    trainer, states = Trainer(fresh_network(), asked), []
    go_back, windows = go_back_to(states)
    with pytest.raises(TrainingDivergedError, match="3 steps in a row that were not applied and after going back 2 ti"):
        trainer.fit(poisoned(range(10, 24)), log=lambda p: None, save=states.append, go_back=go_back)
    assert [(w.first_step, w.end_step) for w in windows] == [(10, 13), (13, 16)]


def test_a_spike_never_reaches_the_weights_and_a_resume_decides_the_same(tmp_path):
    def spiking(index):
        batch = make_batch(index)
        return replace(batch, latents=batch.latents * 1e4) if index == 10 else batch

    settings = SentinelConfig(min_steps=6, window_steps=8)
    asked = options(steps=14, save_every=9, sentinel=settings)
    results = []
    for sentinel in (settings, SentinelConfig(spike_threshold=None)):
        trainer, states = Trainer(fresh_network(), options(steps=14, save_every=9, sentinel=sentinel)), []
        trainer.fit(spiking, log=lambda point: None, save=states.append)
        results.append(states)
    (middle, watched), (_, unwatched) = results
    assert watched.progress.skipped_steps == 1 and unwatched.progress.skipped_steps == 0
    assert len(watched.progress.sentinel.losses) == 8
    save_checkpoint(tmp_path, middle)
    resumed, states = Trainer(fresh_network(seed=3), asked), []
    resumed.restore(load_checkpoint(tmp_path))
    resumed.fit(spiking, log=lambda point: None, save=states.append)
    assert_same(states[-1], watched)


def test_nothing_that_happens_in_training_is_called_a_spike():
    """Heavy-tailed losses of small batches over all timesteps, then a fall by half."""
    draws, sentinel = random.Random(4), Sentinel(SentinelConfig())
    for step in range(3000):
        level = 1.0 if step < 1500 else 0.5
        assert sentinel.judge(level * draws.lognormvariate(0, 0.7), draws.lognormvariate(-1, 0.9)) is None
    assert "robust deviations above" in sentinel.judge(1e6, 1.0)
    assert sentinel.judge(1.0, math.inf) == "the gradient norm is inf"


def test_clipping_bounds_the_step_and_reports_the_norm_before_it():
    settings = OptimizerConfig(learning_rate=1e-2, grad_clip=1e-4)
    clipped, free = (
        trained(Trainer(fresh_network(), options(steps=1, optimizer=s)))
        for s in (settings, settings.model_copy(update={"grad_clip": None}))
    )
    assert clipped[0][0].grad_norm == pytest.approx(free[0][0].grad_norm)
    assert clipped[0][0].grad_norm > 1e-2
    total = sum(t.square().sum() for name, t in clipped[1][0].optimizer.items() if name.endswith("exp_avg"))
    assert math.sqrt(total) == pytest.approx(1e-4 * (1 - 0.9), rel=1e-2)


def test_random_streams_differ_by_all_that_names_them():
    seeds = {
        stream_seed(seed, stage, batch, purpose)
        for seed in (1, 2)
        for stage in ("a", "b")
        for batch in (0, 1)
        for purpose in ("noise", "frames")
    }
    assert len(seeds) == 16 and all(0 <= s < 2**63 for s in seeds)
    assert stream_seed(42, "stage1", 0, "noise") == stream_seed(42, "stage1", 0, "noise")


def test_warm_up_then_cosine():
    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    rates = [settings.learning_rate_at(step, 12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5) and rates[12] == pytest.approx(0.0)
    constant = OptimizerConfig(learning_rate=2.0)
    assert {constant.learning_rate_at(step, 10) for step in range(10)} == {2.0}


def test_accumulated_batches_train_like_their_mean():
    asked = options(steps=4, batches_per_step=4, masks=None, log_every=1)
    points, states = trained(Trainer(fresh_network(), asked))
    network = fresh_network()
    by_hand = Trainer(network, asked)
    settings = asked.optimizer
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
    )
    for step in range(4):
        loss = sum(by_hand._objective(make_batch(index), index).mean for index in range(4 * step, 4 * step + 4)) / 4
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step, 4)
        optimizer.step()
        optimizer.zero_grad()
        assert points[step].loss == pytest.approx(loss.item(), rel=1e-5)
        assert points[step].samples == 12
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(states[-1].weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_every_batch_of_a_step_goes_to_exactly_one_rank():
    for ranks in (1, 2, 4):
        trainers = [
            Trainer(fresh_network(), options(batches_per_step=4), ranks=Ranks(rank, ranks)) for rank in range(ranks)
        ]
        assert sorted(i for t in trainers for i in t.step_batches(5)) == [20, 21, 22, 23]
        assert all(t.step_batches(5) == list(range(20 + r, 24, ranks)) for r, t in enumerate(trainers))
    with pytest.raises(ValueError, match="3 processes cannot share batches_per_step 4 equally; start 1 or 2 or 4, or"):
        Trainer(fresh_network(), options(batches_per_step=4), ranks=Ranks(0, 3))


def test_a_checkpoint_of_other_steps_is_refused():
    state = Trainer(fresh_network(), options(batches_per_step=2)).state()
    with pytest.raises(ValueError, match="batches_per_step 2 and cannot go on with 1"):
        Trainer(fresh_network(), options()).restore(state)
