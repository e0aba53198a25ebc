"""The training loop: the loss is the right one, a stop costs nothing, and it learns."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import torch_ref
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene
from torch_ref.train import TrainOptions, collate, suffix_logits, suffix_loss, train


@dataclass(frozen=True)
class Example:
    image: Image.Image
    prefix: str
    suffix: str


def examples(count, per_scene=1):
    """Questions about drawn scenes, `per_scene` about each."""
    made = []
    for number in range(-(-count // per_scene)):
        rng = np.random.default_rng([11, number])
        scene = draw_scene(rng, size=64, number=False)
        questions = [ask(scene, rng, lambda shape: range(16)) for _ in range(per_scene)]
        made += [Example(scene.image, question.prefix, question.suffix) for question in questions]
    return made[:count]


def fresh():
    """The demo model, to be trained on, and its processor."""
    model, processor = torch_ref.load(device="cpu")
    return model.requires_grad_(True).train(), processor


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def quiet(_):
    pass


def test_the_loss_is_the_one_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, processor = fresh()
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(bundled_checkpoint(), dtype=torch.float32).eval()
    chosen = examples(5)
    inputs = processor([e.image for e in chosen], [e.prefix for e in chosen], [e.suffix for e in chosen])
    expected = theirs(
        input_ids=torch.from_numpy(inputs.input_ids).long(),
        pixel_values=torch.from_numpy(inputs.pixel_values[:, 0].transpose(0, 3, 1, 2).copy()),
        attention_mask=torch.from_numpy(inputs.attention_mask),
        token_type_ids=torch.from_numpy(inputs.token_type_ids),
        labels=torch.from_numpy(inputs.labels).long(),
    ).loss
    for groups in (1, 3):
        assert suffix_loss(model, collate(processor, chosen, groups), 0).item() == pytest.approx(expected.item(), rel=2e-5)


def test_only_suffix_and_eos_are_learned():
    model, processor = fresh()
    example = Example(examples(1)[0].image, "detect star", "<loc0100><loc0200><loc0300><loc0400> star")
    batch = collate(processor, [example])
    rows = model.encode_images(batch.pixels[:, None])
    logits, targets = suffix_logits(model, rows, batch.parts[0])
    assert targets.tolist() == processor.tokenizer.encode_suffix(example.suffix)
    assert logits.shape == (len(targets), model.config.text.vocab_size)


def test_a_later_answer_token_does_not_leak_into_earlier_ones():
    model, processor = fresh()
    image = examples(1)[0].image
    answers = []
    for suffix in ("a red star", "a red heart"):
        batch = collate(processor, [Example(image, "caption en", suffix)])
        logits, _ = suffix_logits(model, model.encode_images(batch.pixels[:, None]), batch.parts[0])
        answers.append(logits.detach())
    assert torch.equal(answers[0][:3], answers[1][:3])  # they predict "a", "red" and the noun, from what comes before
    assert not torch.allclose(answers[0][3], answers[1][3])  # this one has read the noun


def test_examples_of_the_same_picture_share_its_encoding():
    _, processor = fresh()
    batch = collate(processor, examples(8, per_scene=4), groups=2)
    assert len(batch.pixels) == 2
    assert sorted(torch.cat([part.picture for part in batch.parts]).tolist()) == [0] * 4 + [1] * 4


def test_training_lowers_the_loss(tmp_path):
    model, processor = fresh()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    chosen = examples(6)
    before = suffix_loss(model, collate(processor, chosen), 0).item()
    train(model, processor, chosen * 12, TrainOptions(12, batch_size=6, learning_rate=1e-3), tmp_path, log=quiet)
    assert suffix_loss(model, collate(processor, chosen), 0).item() < 0.7 * before


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    options = TrainOptions(6, batch_size=2, learning_rate=1e-3, save_every=2)

    def stop_at(step):
        def loss(model, batch, number):
            if number == step:
                raise KeyboardInterrupt
            return suffix_loss(model, batch, number)

        return loss

    unbroken, processor = fresh()
    train(unbroken, processor, iter(examples(12)), options, tmp_path / "unbroken", log=quiet)
    stopped, _ = fresh()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, processor, iter(examples(12)), options, tmp_path / "stopped", loss=stop_at(3), log=quiet)
    resumed, _ = fresh()
    lines = []
    train(resumed, processor, iter(examples(12)), options, tmp_path / "stopped", log=lines.append)
    assert lines[0] == "resumed at step 2"
    assert torch.equal(weights(resumed), weights(unbroken))


def test_a_vision_rate_of_zero_freezes_the_vision_tower(tmp_path):
    model, processor = fresh()
    before = weights(model.vision_tower).clone(), weights(model.language_model).clone()
    train(model, processor, examples(4), TrainOptions(2, batch_size=2, learning_rate=1e-3, vision_rate=0.0), tmp_path, log=quiet)
    assert torch.equal(weights(model.vision_tower), before[0])
    assert not torch.equal(weights(model.language_model), before[1])


def test_examples_that_run_out_end_the_training_with_a_checkpoint(tmp_path):
    model, processor = fresh()
    train(model, processor, examples(5), TrainOptions(100, batch_size=2), tmp_path, log=quiet)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2
