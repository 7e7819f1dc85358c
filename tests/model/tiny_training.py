"""A network of a few thousand weights and batches for it, shared by the training tests."""

import torch

from model.batch import Batch
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.mask_config import MaskRatios
from model.optimizer_config import OptimizerConfig
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions

CONFIG = STDiT2Config(
    in_channels=4, hidden_size=24, depth=2, num_heads=2, caption_channels=8, model_max_length=6, qk_norm=True,
    input_sq_size=32, pred_sigma=False, init="xavier", class_dropout_prob=0.3,
)  # fmt: skip
MASKS = MaskRatios(mask_no=0.5, mask_image_head=0.3, mask_quarter_random=0.2)


def fresh_network(config: STDiT2Config = CONFIG, seed: int = 0) -> STDiT2:
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(seed))
    return network


def make_batch(index: int) -> Batch:
    """Every third batch holds images, the others clips of four frames."""
    generator = torch.Generator().manual_seed(index)
    frames = 1 if index % 3 == 2 else 4
    lengths = torch.tensor([1 + (index + i) % 6 for i in range(3)])
    return Batch(
        latents=torch.randn(3, 4, frames, 4, 6, generator=generator),
        text_features=torch.randn(3, int(lengths.max()), 8, generator=generator),
        text_mask=(torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        num_frames=frames,
        height=32,
        width=48,
        fps=torch.full((3,), 24.0),
    )


def options(**changes: object) -> TrainerOptions:
    values: dict[str, object] = {
        "stage": "stage1",
        "steps": 12,
        "seed": 7,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=3, schedule="cosine"),
        "diffusion": FlowConfig(),
        "masks": MASKS,
        "ema_decay": 0.9,
        "log_every": 5,
        "save_every": 5,
    }
    return TrainerOptions(**(values | changes))  # type: ignore[arg-type]


def trained(trainer: Trainer) -> tuple[list, list]:
    """Run a trainer to its end; the log points and the saved states."""
    points, states = [], []
    trainer.fit(make_batch, log=points.append, save=states.append)
    return points, states
