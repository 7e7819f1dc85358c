"""One rank of a small training run: python -m tests.model.rank_worker STRATEGY STEPS FOLDER [CHECKPOINT]."""

import sys
from pathlib import Path

from model.checkpoint import load_checkpoint, save_checkpoint
from model.parallel import agreed, deterministic_algorithms, joined_ranks, parallelize
from model.trainer import Trainer
from tests.model.tiny_training import fresh_network, make_batch, options


def main(strategy: str, steps: int, folder: Path, checkpoint: Path | None) -> None:
    with deterministic_algorithms(), joined_ranks(strategy) as ranks:
        assert agreed(ranks.rank + 5, ranks) == 5
        network = fresh_network(seed=0)
        model = parallelize(network, ranks, strategy)
        trainer = Trainer(network, options(steps=steps, save_every=3, log_every=3), model=model, ranks=ranks)
        if checkpoint is not None:
            trainer.restore(load_checkpoint(checkpoint))

        def save(state):
            target = folder / f"rank-{ranks.rank}" / f"step-{state.progress.step}"
            target.mkdir(parents=True)
            save_checkpoint(target, state)

        trainer.fit(make_batch, log=lambda point: None, save=save)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
