"""Trains the bundled demo checkpoint from a seed: vocabulary, mask codec, vision tower, then everything together.

Usage: python scripts/train_demo.py --runs runs/demo [--out mlx_paligemma/demo/checkpoint]
Every stage saves its state under --runs and a second call goes on where the first one stopped.
About five hours on two CPU cores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from demo_losses import NARROW, JointLoss, VisionLoss
from demo_vocabulary import build_vocabulary
from PIL import Image
from safetensors.torch import load_file, save_file
from train_mask_codec import train_mask_codec

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.image import pixel_values
from mlx_paligemma.common.mask_codec import FILE_NAME, read_mask_codec
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.tokenizer import NUM_LOC, PaliGemmaTokenizer
from mlx_paligemma.demo.questions import LOCATING_WEIGHTS, PAIRS, SHAPE_SCENE_WEIGHTS, Question, ask
from mlx_paligemma.demo.scenes import Scene, Shape, draw_scene
from torch_ref.mask_decoder import MaskCodec
from torch_ref.paligemma import PaliGemma
from torch_ref.train import TrainOptions, train

SEED = 20261122
QUESTIONS_PER_SCENE = 4
LOCATING_FROM = 40_000  # from this scene of the joint training on, more questions are about places, the hardest to learn
POLISH_WEIGHTS = (0.12, 0.05, 0.06, 0.06, 0.11, 0.13, 0.31, 0.14, 0.02)  # of the tasks in questions.py: the weakest most often
LAST_WEIGHTS = (0.08, 0.03, 0.05, 0.03, 0.08, 0.27, 0.22, 0.22, 0.02)
LAST_ROUNDS = ((1000, 7e-4), (1000, 7e-4), (1000, 7e-4), (2500, 1e-3), (1500, 7e-4))  # steps and highest rate of each
LAST_PAIRS = 0.5  # of their questions about places, this share asks for two kinds at once: the first was often left out
WHITENING_FLOOR = 0.1  # variance below which a direction counts as noise
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "projection_dim": 192, "vision_use_head": False,
}  # fmt: skip
TEXT = {
    "model_type": "gemma", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class DemoExample:
    """A question about a scene, as `torch_ref.train.Example`."""

    scene: Scene
    question: Question

    @property
    def image(self) -> Image.Image:
        """The same object for all questions about a scene."""
        return self.scene.image

    @property
    def prefix(self) -> str:
        """The prompt."""
        return self.question.prefix

    @property
    def suffix(self) -> str:
        """The answer."""
        return self.question.suffix


@dataclass(frozen=True)
class SceneExamples:
    """Endless examples; scene n depends on the seed and n alone."""

    codec: MaskCodec
    seed: int
    per_scene: int = QUESTIONS_PER_SCENE
    start: int = 0  # scenes
    weights: tuple[float, ...] = ()  # how often which question; left out: as in the joint training
    pairs: float = PAIRS

    def skip(self, count: int) -> SceneExamples:
        """The examples after the first `count`."""
        return replace(self, start=count // self.per_scene)

    def __iter__(self) -> Iterator[DemoExample]:
        number = self.start
        while True:
            rng = np.random.default_rng([self.seed, number])
            scene = draw_scene(rng)
            codes = SceneCodes(self.codec, scene)
            weights = self.weights or (SHAPE_SCENE_WEIGHTS if number < LOCATING_FROM else LOCATING_WEIGHTS)
            for _ in range(self.per_scene):
                yield DemoExample(scene, ask(scene, rng, codes, weights=weights, pairs=self.pairs))
            number += 1


class SceneCodes:
    """The mask codes of a scene's shapes, computed together when the first is asked for."""

    def __init__(self, codec: MaskCodec, scene: Scene):
        self.codec, self.scene = codec, scene
        self.codes: dict[int, list[int]] = {}

    def __call__(self, shape: Shape) -> list[int]:
        """16 codes."""
        if not self.codes:
            crops = torch.from_numpy(np.stack([shape.crop() for shape in self.scene.shapes]))[..., None]
            with torch.no_grad():
                rows = self.codec.encode(crops).tolist()
            self.codes = {id(shape): row for shape, row in zip(self.scene.shapes, rows, strict=True)}
        return self.codes[id(shape)]


def new_model(tokenizer: PaliGemmaTokenizer) -> tuple[PaliGemma, dict]:
    """An untrained model for a vocabulary, and its config.json."""
    rows = -(-(tokenizer.size + 1) // 64) * 64
    data = {
        "architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma", "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "ignore_index": -100,
        "image_token_index": tokenizer.size, "hidden_size": 192, "projection_dim": 192, "torch_dtype": "float16",
        "vocab_size": rows, "text_config": TEXT | {"vocab_size": rows, "num_image_tokens": 64}, "vision_config": VISION,
    }  # fmt: skip
    torch.manual_seed(SEED)
    model = PaliGemma(PaliGemmaConfig.from_dict(data))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(module.weight)
        table = model.language_model.embed_tokens.weight.normal_(0, 0.02)
        table[tokenizer.first_loc : tokenizer.first_loc + NUM_LOC] = _fourier_rows(NUM_LOC, table.shape[1])
        for layer in model.vision_tower.encoder.layers:  # patches look first at those like them and near them, arXiv:2305.09828
            layer.self_attn.q_proj.weight.mul_(0.7)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        _whiten_patches(model.vision_tower.embeddings.patch_embedding)
        positions = model.vision_tower.embeddings.position_embedding.weight
        positions.copy_(_grid_rows(model.config.vision.image_size // model.config.vision.patch_size, positions.shape[1]))
    return model, data


def _fourier_rows(count: int, width: int) -> torch.Tensor:
    """Rows in which neighbouring bins are alike: waves from half a turn to 32 turns over the range."""
    turns = torch.logspace(-1, 5, width // 2, base=2)
    phase = 2 * torch.pi * torch.arange(count)[:, None] / count * turns
    return 0.05 * torch.cat([phase.sin(), phase.cos()], dim=1)


def _whiten_patches(embedding: torch.nn.Conv2d, scenes: int = 800) -> None:
    """Start from the principal directions of real patches, evened out: else the mean colour drowns the edges for hours."""
    rng = np.random.default_rng(SEED)
    size, side = 112, embedding.kernel_size[0]
    pixels = np.stack([pixel_values(draw_scene(rng, size=size).image, size) for _ in range(scenes)])
    patches = torch.from_numpy(pixels).unfold(1, side, side).unfold(2, side, side).flatten(0, 2).flatten(1).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values.flip(0)[: embedding.out_channels], vectors.flip(1)[:, : embedding.out_channels]
    kernel = (vectors / (values + WHITENING_FLOOR).sqrt()).T
    embedding.weight.copy_(kernel.unflatten(1, (3, side, side)))
    embedding.bias.copy_(-kernel @ mean)


def _grid_rows(side: int, width: int) -> torch.Tensor:
    """Rows of waves along x and along y, so that a patch finds its neighbours from the first step on."""
    frequencies = torch.logspace(0, -1, width // 4) * torch.pi / 2
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return 0.5 * torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], dim=1)


def main(
    runs: Annotated[Path, typer.Option(help="Folder for the state of the training.")] = Path("runs/demo"),
    out: Annotated[Path, typer.Option(help="Folder for the finished checkpoint.")] = Path("mlx_paligemma/demo/checkpoint"),
    vision_steps: Annotated[int, typer.Option(help="Steps of 32 pictures for the vision tower alone.")] = 2600,
    joint_steps: Annotated[int, typer.Option(help="Steps of 16 pictures and 64 questions for the whole model.")] = 4000,
    polish_steps: Annotated[int, typer.Option(help="Further such steps on the questions that are hardest.")] = 6000,
) -> None:
    """Train the demo checkpoint, or go on training it."""
    torch.set_num_threads(2)
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "tokenizer.model").exists():
        (runs / "tokenizer.model").write_bytes(build_vocabulary())
    if not (runs / FILE_NAME).exists():
        train_mask_codec(runs / FILE_NAME, SEED)
    codec_config, arrays = read_mask_codec(runs / FILE_NAME)
    codec = MaskCodec(codec_config)
    codec.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    tokenizer = PaliGemmaTokenizer.from_folder(runs)
    model, data = new_model(tokenizer)
    processor = PaliGemmaProcessor(model.config, tokenizer)
    _train_vision(model, processor, codec, runs, vision_steps)
    _train_joint(model, processor, codec, runs, joint_steps)
    _polish(model, processor, codec, runs, polish_steps)
    _finish(model, processor, codec, runs)
    save_checkpoint(model, data, runs, out)


def _train_vision(model: PaliGemma, processor: PaliGemmaProcessor, codec: MaskCodec, runs: Path, steps: int) -> None:
    done = runs / "vision.safetensors"
    if not done.exists():
        options = TrainOptions(steps, batch_size=32, learning_rate=1e-3, weight_decay=0.02, save_every=250, log_every=50)
        train(model, processor, SceneExamples(codec, SEED, per_scene=1), options, runs / "vision", VisionLoss(model.config))
        save_file(model.vision_tower.state_dict(), done)
    model.vision_tower.load_state_dict(load_file(done))


def _train_joint(model: PaliGemma, processor: PaliGemmaProcessor, codec: MaskCodec, runs: Path, steps: int) -> None:
    loss = JointLoss(model.config, processor.tokenizer, steps)
    trained_head = torch.load(runs / "vision" / "training.pt", weights_only=True)["loss"]
    loss.vision.load_state_dict(trained_head)
    options = _whole_model_options(steps, learning_rate=1.2e-3)
    train(model, processor, SceneExamples(codec, SEED + 1), options, runs / "joint", loss)


def _polish(model: PaliGemma, processor: PaliGemmaProcessor, codec: MaskCodec, runs: Path, steps: int) -> None:
    loss = JointLoss(model.config, processor.tokenizer, steps, widest=NARROW)
    loss.load_state_dict(torch.load(runs / "joint" / "training.pt", weights_only=True)["loss"])
    options = _whole_model_options(steps, learning_rate=1.2e-3)
    train(model, processor, SceneExamples(codec, SEED + 2, weights=POLISH_WEIGHTS), options, runs / "polish", loss)


def _finish(model: PaliGemma, processor: PaliGemmaProcessor, codec: MaskCodec, runs: Path) -> None:
    """Rounds that each warm up and cool down again; the mean of the last two is better than either (arXiv:1803.05407)."""
    before, ends = runs / "polish", []
    for number, (steps, rate) in enumerate(LAST_ROUNDS):
        loss = JointLoss(model.config, processor.tokenizer, steps, widest=NARROW)
        loss.load_state_dict(torch.load(before / "training.pt", weights_only=True)["loss"])
        options = _whole_model_options(steps, learning_rate=rate)
        before = runs / f"last-{number}"
        examples = SceneExamples(codec, SEED + 3 + number, weights=LAST_WEIGHTS, pairs=LAST_PAIRS)
        train(model, processor, examples, options, before, loss)
        ends = [*ends[-1:], {name: tensor.clone() for name, tensor in model.state_dict().items()}]
    model.load_state_dict({name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]})


def _whole_model_options(steps: int, learning_rate: float) -> TrainOptions:
    return TrainOptions(
        steps, batch_size=64, learning_rate=learning_rate, vision_rate=0.4, weight_decay=0.02, length_groups=3, save_every=250
    )


def save_checkpoint(model: PaliGemma, data: dict, runs: Path, out: Path) -> None:
    """Write a folder in the layout of the hub's first PaliGemma files, in float16."""
    out.mkdir(parents=True, exist_ok=True)
    names = {"vision_tower.": "vision_tower.vision_model.", "language_model.": "language_model.model."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        head = name.split(".")[0] + "."
        tensors[names.get(head, head) + name.removeprefix(head)] = tensor.half().contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    size = model.config.vision.image_size
    preprocessor = {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "image_seq_length": model.config.vision.num_patches, "resample": 3,
        "processor_class": "PaliGemmaProcessor", "rescale_factor": 1 / 255, "size": {"height": size, "width": size},
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2, sort_keys=True) + "\n")
    for name in ("tokenizer.model", FILE_NAME):
        shutil.copyfile(runs / name, out / name)


if __name__ == "__main__":
    typer.run(main)
