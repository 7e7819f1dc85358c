"""One rank that trains sharded and saves its share and the whole: python -m tests.model.sharded_worker FOLDER."""

import dataclasses
import sys
from pathlib import Path

from model.checkpoint import load_checkpoint, save_checkpoint
from model.parallel import agreed, deterministic_algorithms, joined_ranks, parallelize
from model.trainer import Trainer
from tests.model.tiny_training import fresh_network, make_batch, options


def main(folder: Path) -> None:
    with deterministic_algorithms(), joined_ranks("fsdp") as ranks:
        network = fresh_network(seed=0)
        model = parallelize(network, ranks, "fsdp")
        trainer = Trainer(network, options(steps=4, save_every=4, batches_per_step=2), model=model, ranks=ranks)
        trainer.fit(make_batch, log=lambda point: None, save=lambda state: None)
        whole, shares = trainer.state(), folder / "shares"
        trainer.options = dataclasses.replace(trainer.options, sharded_state=True)
        shares.mkdir(exist_ok=True)
        save_checkpoint(shares, trainer.state())
        if ranks.is_first:
            (folder / "whole").mkdir()
            save_checkpoint(folder / "whole", whole)
        agreed(0, ranks)  # all shares are there
        trainer.start_from(load_checkpoint(shares))
        (folder / f"back-{ranks.rank}").mkdir()
        save_checkpoint(folder / f"back-{ranks.rank}", trainer.state())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
