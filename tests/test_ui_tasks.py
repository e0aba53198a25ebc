"""The page's tasks become the prompts that PaliGemma knows, and what is missing is said."""

import pytest

from mlx_paligemma.common import prompt
from mlx_paligemma.common.errors import OptionError, PromptError
from mlx_paligemma.ui.examples import EXAMPLES
from mlx_paligemma.ui.tasks import LANGUAGES, Task, write_prompt

PROMPTS = [  # task, text, language, prompt
    (Task.caption, "is ignored", "de", prompt.caption("de")),
    (Task.caption, None, None, prompt.caption("en")),
    (Task.question, "  what is\n on  it? ", "pt-br", prompt.answer("what is on it?", "pt-br")),
    (Task.ocr, "", "de", prompt.ocr()),
    (Task.detect, "cat", "de", prompt.detect("cat")),
    (Task.detect, "cat, big dog;;cow ;", None, prompt.detect("cat", "big dog", "cow")),
    (Task.segment, "heart ; star", "en", prompt.segment("heart", "star")),
    (Task.free, " describe en ", "xx yy", "describe en"),
]


@pytest.mark.parametrize(("task", "text", "language", "wanted"), PROMPTS)
def test_each_task_writes_the_prompt_of_the_library(task, text, language, wanted):
    assert write_prompt(task, text, language) == wanted
    assert write_prompt(task.value, text, language) == wanted  # as a page sends it


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        (Task.question, " ", "write a question"),
        (Task.free, None, "write a prompt"),
        (Task.detect, "", "what to look for"),
        (Task.segment, " , ;; ", "what to look for"),
    ],
)
def test_a_missing_text_is_asked_for(task, text, words):
    with pytest.raises(PromptError, match=words):
        write_prompt(task, text)


@pytest.mark.parametrize("language", ["en de", "e/n", " ", "-"])
def test_what_is_no_code_of_a_language_is_refused(language):
    with pytest.raises(PromptError, match="is no language code"):
        write_prompt(Task.caption, "", language)


def test_an_unknown_task_names_the_known_ones():
    for task in ("caption", "", None):
        with pytest.raises(OptionError, match="Caption, Question, Detect, Segment, Read text, Free prompt"):
            write_prompt(task)


def test_every_language_has_a_code_of_its_own_that_can_be_asked_in():
    assert len({*LANGUAGES.values()}) == len(LANGUAGES) > 30
    assert all(write_prompt(Task.caption, "", code) == f"caption {code}" for code in LANGUAGES.values())


def test_only_some_tasks_need_a_text_or_a_language():
    assert [task for task in Task if not task.needs_text] == [Task.caption, Task.ocr]
    assert [task for task in Task if task.has_language] == [Task.caption, Task.question]


def test_the_examples_are_files_of_the_package_with_prompts():
    assert {task for _, task, _ in EXAMPLES} == {*Task} - {Task.free}
    assert all(path.is_file() and write_prompt(task, text) for path, task, text in EXAMPLES)


def test_a_free_prompt_is_sent_as_it_is_written():
    assert write_prompt("Free prompt", " answer en  what is\nthis? ") == "answer en  what is\nthis?"
    assert write_prompt("Question", " what is\nthis? ") == "answer en what is this?"
