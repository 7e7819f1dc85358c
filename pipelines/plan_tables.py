"""Shows a plan: one table for each stage, one for the schedule, and what it takes on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from model.batch_sizes import kept_buckets, squarest
from model.buckets import Bucket
from model.cost import GIB, pair_of
from pipelines.plan import RunPlan, StagePlan


def print_plan(plan: RunPlan, console: Console) -> None:
    """Everything about a plan.

    A row is a (resolution, num_frames): size and tokens are those of its squarest aspect, batch sizes the range over
    its aspects, costs the mean over them, memory the most of any. `share` is its part of the stage's time if every
    bucket gave equally many batches; how many they really give depends on the clips. The schedule rests on the same
    mean.
    """
    config = plan.config
    console.print(f"[b]{config.preset}[/]: {config.description}")
    console.print(f"{plan.device}; network {_network(plan)}")
    for stage in plan.stages:
        console.print()
        console.print(_stage_table(plan, stage))
        listed, planned = (stage.imbalance(sizes) for sizes in (stage.listed, stage.choice.batch_sizes))
        console.print(f"imbalance (longest over mean step): {listed:.2f} listed, {planned:.2f} planned")
        if stage.worst_error is not None:
            console.print(f"predictions from the small batches were within {stage.worst_error:.0%} of the planned ones")
        for resolution, num_frames in dict.fromkeys(pair_of(bucket) for bucket in stage.choice.bound_by_memory):
            console.print(f"{resolution} x {num_frames}: no more fits into the memory")
    console.print()
    console.print(_schedule_table(plan))
    console.print("training steps only: latents and text features are encoded once, before")
    _print_storage(plan, console)
    if not config.trainable_here:
        console.print("This preset is checked and planned only; training it takes a cluster.")


def _stage_table(plan: RunPlan, stage: StagePlan) -> Table:
    unit = "s" if plan.in_seconds else "TFLOP"
    table = _table(
        f"{stage.stage.name}: {stage.stage.steps} steps", "resolution", "frames", "size", "keep", "listed", "tokens",
        "planned", f"listed {unit}", f"planned {unit}", "memory GiB", "share",
    )  # fmt: skip
    sizes = stage.choice.batch_sizes
    groups = kept_buckets(stage.stage.buckets)
    listed_steps, steps = stage.steps(stage.listed), stage.steps(sizes)
    total = sum(steps.values())
    for resolution, num_frames in stage.stage.buckets.pairs:
        keep_prob, _ = stage.stage.buckets.buckets[resolution][num_frames]
        group = groups.get((resolution, num_frames))
        if group is None:
            table.add_row(resolution, str(num_frames), "", f"{keep_prob:g}", "-", "", "", "", "", "", "barrier")
            continue
        bucket = squarest(group)
        listed_s, seconds = (sum(costs[other] for other in group) for costs in (listed_steps, steps))
        memory = max(stage.cost.peak_bytes(other, sizes[other]) for other in group) / GIB
        table.add_row(
            resolution, str(num_frames), f"{bucket.height}x{bucket.width}", f"{keep_prob:g}",
            _range(stage.listed, group), str(stage.cost.workload.tokens(bucket)), _range(sizes, group),
            f"{listed_s / len(group):.3g}", f"{seconds / len(group):.3g}",
            f"{memory:.3g}" if plan.in_seconds else "", f"{seconds / total:.1%}",
        )  # fmt: skip
    return table


def _range(sizes: Mapping[Bucket, int], group: Sequence[Bucket]) -> str:
    """The batch sizes of some buckets: "8", or "5-8" where they differ."""
    least, most = min(sizes[bucket] for bucket in group), max(sizes[bucket] for bucket in group)
    return str(least) if least == most else f"{least}-{most}"


def _schedule_table(plan: RunPlan) -> Table:
    gpus, price = plan.options.gpus, plan.options.price_per_gpu_hour
    columns = ["stage", "steps", "batch sizes", "samples"]
    if plan.in_seconds:
        columns += ["mean step s", "GPU-hours", "if ranks wait"]
        columns += ["cost"] if price is not None else []
    else:
        columns += ["PFLOP per rank"]
    table = _table(f"schedule on {gpus} {'rank' if gpus == 1 else 'ranks'}", *columns)
    for stage in plan.stages:
        for name, sizes in _both(stage).items():
            row = [stage.stage.name, str(stage.stage.steps), name, f"{stage.samples(sizes, gpus):.3g}"]
            table.add_row(*row, *_amounts(plan, [(stage, sizes)]))
    steps = str(sum(stage.stage.steps for stage in plan.stages))
    for name in ("listed", "planned"):
        parts = [(stage, _both(stage)[name]) for stage in plan.stages]
        samples = sum(stage.samples(sizes, gpus) for stage, sizes in parts)
        table.add_row("total", f"{steps} steps", name, f"{samples:.3g}", *_amounts(plan, parts), style="bold")
    return table


def _both(stage: StagePlan) -> dict[str, Mapping[Bucket, int]]:
    return {"listed": stage.listed, "planned": stage.choice.batch_sizes}


def _amounts(plan: RunPlan, parts: list[tuple[StagePlan, Mapping[Bucket, int]]]) -> list[str]:
    """Mean step, GPU-hours, the same if ranks with different buckets wait for the longest, and their price."""
    steps = sum(stage.stage.steps for stage, _ in parts)
    work = sum(stage.mean_step(sizes) * stage.stage.steps for stage, sizes in parts)
    if not plan.in_seconds:
        return [f"{work / 1e3:.3g}"]
    hours = sum(plan.gpu_hours(stage, sizes) for stage, sizes in parts)
    waiting = sum(plan.gpu_hours(stage, sizes) * stage.imbalance(sizes) for stage, sizes in parts)
    price = plan.options.price_per_gpu_hour
    money = [] if price is None else [f"{hours * price:,.2f}"]
    return [f"{work / steps:.3g}", _hours(hours), _hours(waiting), *money]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"


def _print_storage(plan: RunPlan, console: Console) -> None:
    one, kept = plan.checkpoint_bytes, plan.checkpoints_kept
    console.print(f"one checkpoint {_size(one)} (weights, moving average, optimizer); {kept} kept: {_size(kept * one)}")
    text = plan.text_bytes()
    latents = _size(plan.latents_bytes())
    if text is None:
        console.print(f"latents: at most {latents}, if every sample were another crop; --clips tells more")
    else:
        console.print(f"latents: at most {latents}; text features: {_size(text)}")


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e6:.3g} MB"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name, justify="left" if name in ("resolution", "stage", "batch sizes") else "right")
    return table


def _network(plan: RunPlan) -> str:
    network = plan.config.network
    return f"{network.depth} blocks of width {network.hidden_size}, {network.num_heads} heads"
