"""Token ids become answers: when a row ends, what it says while it grows, and what is left after an interruption.

The model is a script here: a list of tokens for each row.
"""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import BYTES, IMAGE_TOKEN, PIECES, config, config_json, tensors, tokenizer, write
from PIL import Image

import mlx_paligemma
import torch_ref
from mlx_paligemma.common import decoding
from mlx_paligemma.common.decoding import Generation, Step
from mlx_paligemma.common.errors import NumericError, OptionError, PromptError
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.sampling import SamplingOptions

PICTURE = Image.new("RGB", (64, 32), "green")
TOKENS = tokenizer()
EOS, PAD = TOKENS.eos_token_id, TOKENS.pad_token_id
EMOJI = [PIECES.index(BYTES[byte]) for byte in "😀".encode()]
CAT, DOG = TOKENS.encode(" cat"), TOKENS.encode(" dog")


class Script:
    """Yields what each row is to say, after which it repeats the row's last token; None raises KeyboardInterrupt."""

    def __init__(self, *rows):
        self.rows, self.options, self.inputs, self.steps = rows, None, None, 0

    def __call__(self, request):
        self.inputs, self.options = request.inputs, request.options
        return self._steps(request.options.max_tokens)

    def _steps(self, count):
        for step in range(count):
            tokens = [row[min(step, len(row) - 1)] for row in self.rows]
            if None in tokens:
                raise KeyboardInterrupt
            self.steps += 1
            yield Step(tokens, [-0.5] * len(tokens), [0.25] * len(tokens), [False] * len(tokens), [False] * len(tokens))


def start(script, prompts=None, images=None, text=None, decode_masks=None, **options) -> Generation:
    prompts = prompts or ["caption en"] * len(script.rows)
    processor = PaliGemmaProcessor(config(text=text or {}), TOKENS, decode_masks)
    return Generation(script, lambda: 123, processor, images or [PICTURE] * len(prompts), prompts, SamplingOptions(**options))


def test_eos_ends_an_answer_and_is_not_part_of_it():
    script = Script([*CAT, EOS, *DOG])
    (result,) = start(script).run()
    assert (result.text, result.token_ids, result.finish_reason) == (" cat", CAT, "stop")
    assert script.steps == len(CAT) + 1


def test_an_answer_may_be_empty():
    (result,) = start(Script([EOS])).run()
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "stop")
    assert result.stats.generation_tokens == 0
    assert result.stats.time_to_first_token_s is not None
    assert result.stats.generation_tps is None


def test_max_tokens_ends_an_answer_as_length():
    script = Script(CAT + DOG)
    (result,) = start(script, max_tokens=len(CAT)).run()
    assert (result.token_ids, result.finish_reason) == (CAT, "length")
    assert script.steps == script.options.max_tokens == len(CAT)


def test_the_end_of_the_context_ends_an_answer_as_length():
    prompt = 4 + len(TOKENS.encode_prefix("caption en"))
    script = Script(CAT)
    (result,) = start(script, text={"max_position_embeddings": prompt + 3}, max_tokens=50).run()
    assert (len(result.token_ids), result.finish_reason) == (3, "length")
    assert script.options.max_tokens == 3


def test_a_prompt_that_leaves_no_room_is_refused():
    prompt = 4 + len(TOKENS.encode_prefix("caption en"))
    with pytest.raises(PromptError, match="shorten it"):
        start(Script(CAT), text={"max_position_embeddings": prompt})


def test_each_row_has_the_context_that_it_would_have_alone():
    short, long = 4 + len(TOKENS.encode_prefix("ocr")), 4 + len(TOKENS.encode_prefix("detect cat ; dog"))
    script = Script(CAT, DOG)
    results = start(script, ["ocr", "detect cat ; dog"], text={"max_position_embeddings": 20}, max_tokens=50).run()
    assert [len(result.token_ids) for result in results] == [20 - short, 20 - long]
    assert [result.finish_reason for result in results] == ["length", "length"]
    assert script.steps == script.options.max_tokens == 20 - short


def test_a_batch_goes_on_until_its_last_row_is_done():
    script = Script([EOS], [*CAT, EOS], [*CAT, *DOG, EOS])
    generation = start(script)
    steps = list(generation)
    assert [result.text for result in generation.results()] == ["", " cat", " cat dog"]
    assert script.steps == len(CAT) + len(DOG) + 1
    assert [[chunk is not None for chunk in chunks] for chunks in steps[:2]] == [[True, True, True], [False, True, True]]
    assert [chunk is not None for chunk in steps[-1]] == [False, False, True]


def test_the_streamed_pieces_are_the_text_and_the_last_has_the_reason():
    ids = [*CAT, *EMOJI, *DOG]
    for script, reason in ((Script([*ids, EOS]), "stop"), (Script(ids), "length")):
        generation = start(script, max_tokens=len(ids) + (reason == "stop"))
        chunks = [chunk for (chunk,) in generation]
        assert "".join(chunk.text for chunk in chunks) == generation.results()[0].text == " cat😀 dog"
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [reason]
        assert [chunk.token_id for chunk in chunks][: len(ids)] == ids
        assert not any("\ufffd" in chunk.text for chunk in chunks)


@pytest.mark.parametrize("end", [[EOS], []], ids=["stop", "length"])
def test_an_answer_that_ends_within_a_character_streams_what_the_result_says(end):
    generation = start(Script([*CAT, *EMOJI[:2], *end]), max_tokens=len(CAT) + 2 + len(end))
    assert "".join(chunk.text for (chunk,) in generation) == generation.results()[0].text == " cat\ufffd\ufffd"


def test_tokens_without_text_are_kept_as_ids():
    (result,) = start(Script([IMAGE_TOKEN, *CAT, PAD, IMAGE_TOKEN + 9, EOS])).run()
    assert result.text == " cat"
    assert result.token_ids == [IMAGE_TOKEN, *CAT, PAD, IMAGE_TOKEN + 9]


def test_scores_that_are_no_numbers_are_an_error_that_says_what_to_try():
    generation = start(Script([*CAT, -1]))
    with pytest.raises(NumericError, match=r"not finite .* try --dtype float32") as error:
        generation.run()
    assert "\n" not in str(error.value)
    (result,) = generation.results()
    assert (result.token_ids, result.finish_reason) == (CAT, "cancelled")


def test_a_row_that_is_done_does_not_mind_what_comes_after():
    results = start(Script([EOS, -1], [*CAT, EOS])).run()
    assert [result.finish_reason for result in results] == ["stop", "stop"]


def test_results_before_the_first_step_are_empty_and_cancelled():
    (result,) = start(Script(CAT)).results()
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "cancelled")
    assert result.stats.time_to_first_token_s is None
    assert result.stats.generation_tps is None


def test_a_generation_that_is_left_halfway_keeps_what_it_has():
    generation = start(Script([*CAT, EOS], CAT + DOG))
    for count, _ in enumerate(generation, start=1):
        if count == len(CAT) + 1:
            break
    first, second = generation.results()
    assert (first.token_ids, first.finish_reason) == (CAT, "stop")
    assert (second.token_ids, second.finish_reason) == ((CAT + DOG)[: len(CAT) + 1], "cancelled")


def test_an_interruption_keeps_what_was_said_before():
    generation = start(Script([*CAT, None]))
    with pytest.raises(KeyboardInterrupt):
        generation.run()
    (result,) = generation.results()
    assert (result.text, result.finish_reason) == (" cat", "cancelled")
    assert generation.run()[0].token_ids == CAT  # nothing more comes, and nothing is said twice


def test_a_generation_that_is_left_can_go_on_where_it_was():
    ids = [*CAT, *DOG, *EMOJI]
    script = Script([*ids, EOS])
    generation = start(script)
    next(iter(generation))
    next(iter(generation))
    early = generation.results()[0]
    (result,) = generation.run()
    assert (result.token_ids, result.finish_reason) == (ids, "stop")
    assert script.steps == len(ids) + 1
    assert early.token_ids == ids[:2]  # a result is a value: it does not grow


def test_asking_again_after_the_end_gives_the_same_answer():
    script = Script([*CAT, EOS])
    generation = start(script)
    assert generation.run()[0].token_ids == generation.run()[0].token_ids == CAT
    assert list(generation) == []
    assert script.steps == len(CAT) + 1


def test_stats_count_tokens_and_seconds(monkeypatch):
    clock = iter([10.0, 12.0, 12.5, 13.0, 13.5])
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: next(clock))
    script = Script([CAT[0], DOG[0], CAT[0], EOS], [DOG[0], EOS])
    first, second = start(script, ["detect cat ; dog", "ocr"]).run()
    assert [first.stats.prompt_tokens, second.stats.prompt_tokens] == [
        4 + len(TOKENS.encode_prefix(prompt)) for prompt in ("detect cat ; dog", "ocr")
    ]
    assert [first.stats.generation_tokens, second.stats.generation_tokens] == [3, 1]
    assert first.stats.time_to_first_token_s == second.stats.time_to_first_token_s == 2.0
    assert first.stats.generation_tps == second.stats.generation_tps == pytest.approx(2 / 1.5)
    assert first.stats.peak_memory_bytes == 123
    assert first.stats.grammar_changes == 0


def test_several_pictures_count_as_prompt_tokens():
    (result,) = start(Script([EOS]), images=[[PICTURE, PICTURE]]).run()
    assert result.stats.prompt_tokens == 8 + len(TOKENS.encode_prefix("caption en"))


def test_objects_in_an_answer_are_in_pixels_of_the_first_picture():
    text = "<loc0256><loc0128><loc0768><loc0512> cat"
    (result,) = start(Script([*TOKENS.encode(text), EOS]), images=[[PICTURE, Image.new("RGB", (9, 9))]]).run()
    assert result.text == text
    assert [(d.label, d.box, d.mask) for d in result.detections] == [("cat", (8, 8, 32, 24), None)]


def test_masks_of_an_answer_have_the_size_of_the_picture():
    text = "<loc0000><loc0000><loc1023><loc0512>" + "<seg003>" * 16 + " cat"
    generation = start(Script([*TOKENS.encode(text), EOS]), decode_masks=lambda codes: np.ones((len(codes), 64, 64)))
    mask = generation.run()[0].detections[0].mask
    assert mask.shape == (32, 64)
    assert mask[:, :32].all()
    assert not mask[:, 32:].any()


def test_pictures_are_opened_once_and_before_anything_is_computed(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    script = Script([*CAT, EOS])
    generation = start(script, images=[tmp_path / "a.png"])
    (tmp_path / "a.png").unlink()
    assert script.steps == 0
    assert generation.run()[0].text == " cat"


def test_a_wrong_option_is_refused_before_pictures_are_opened():
    with pytest.raises(OptionError):
        start(Script(CAT), images=["nothing.png"], max_tokens=0)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_both_models_use_the_whole_context_of_every_row(tmp_path, package):
    data = config_json(text={"max_position_embeddings": 20})
    model, processor = package.load(write(tmp_path, tensors(data), data=data))
    prompts = ["ocr", "detect cat ; dog"]
    alone = [package.generate(model, processor, PICTURE, prompt, grammar=False) for prompt in prompts]
    assert [result.stats.prompt_tokens + result.stats.generation_tokens for result in alone] == [20, 20]
    together = package.batch_generate(model, processor, [PICTURE, PICTURE], prompts, grammar=False)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


class TellingScript(Script):
    """Says of each token that it was the likeliest, and the one after it the next."""

    def _steps(self, count):
        for step in super()._steps(count):
            yield replace(step, top_ids=[[i, i + 1] for i in step.token_ids], top_logprobs=[[-0.5, -1.5] for _ in step.token_ids])


def test_the_likeliest_tokens_of_every_token_are_in_the_result_where_they_are_asked_for():
    script = TellingScript([*CAT, EOS], [*CAT, *DOG, EOS])
    results = start(script, top_logprobs=2).run()
    assert [result.top_logprobs for result in results] == [
        [[(token, -0.5), (token + 1, -1.5)] for token in result.token_ids] for result in results
    ]
    assert len(results[1].top_logprobs) == len(CAT + DOG)
    assert [result.top_logprobs for result in start(script).run()] == [None, None]


class CutScript(Script):
    """Says that the grammar ended every row."""

    def _steps(self, count):
        for step in super()._steps(count):
            yield replace(step, changed=[True] * len(step.changed), cut=[True] * len(step.cut))


def test_an_answer_that_the_grammar_had_to_end_is_cut_off_and_says_so():
    (result,) = start(CutScript([EOS]), ["detect cat"], max_tokens=3).run()
    assert (result.text, result.finish_reason) == ("", "length")
    assert result.stats.grammar_changes == 1
    (note,) = result.notes
    assert "after 3 tokens" in note
    assert "--max-tokens" in note


def test_an_answer_that_ended_by_itself_has_no_note():
    assert start(Script([*CAT, EOS])).run()[0].notes == ()
