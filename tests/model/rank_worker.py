"""One rank of a small training run: python -m tests.model.rank_worker STRATEGY STEPS FOLDER [CHECKPOINT].

Each rank leaves its checkpoints in FOLDER/rank-R/step-N, and in FOLDER/rank-R/seen.json what it read and lost.
"""

import json
import sys
from pathlib import Path

from model.checkpoint import load_checkpoint, save_checkpoint
from model.parallel import agreed, deterministic_algorithms, joined_ranks, parallelize
from model.trainer import Trainer
from tests.model.tiny_training import fresh_network, make_batch, options

BATCHES_PER_STEP = 4


def main(strategy: str, steps: int, folder: Path, checkpoint: Path | None) -> None:
    with deterministic_algorithms(), joined_ranks(strategy) as ranks:
        assert agreed(ranks.rank + 5, ranks) == 5
        network = fresh_network(seed=0)
        model = parallelize(network, ranks, strategy)
        asked = options(steps=steps, batches_per_step=BATCHES_PER_STEP, save_every=3, log_every=1)
        trainer = Trainer(network, asked, model=model, ranks=ranks)
        if checkpoint is not None:
            trainer.restore(load_checkpoint(checkpoint))
        read, losses = {}, {}

        def batches(index):
            read.setdefault(trainer.step, []).append(index)
            return make_batch(index)

        def log(point):
            losses[point.step] = (point.loss, point.grad_norm)

        def save(state):
            target = folder / f"rank-{ranks.rank}" / f"step-{state.progress.step}"
            target.mkdir(parents=True)
            save_checkpoint(target, state)

        trainer.fit(batches, log=log, save=save)
        (folder / f"rank-{ranks.rank}" / "seen.json").write_text(json.dumps({"read": read, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
