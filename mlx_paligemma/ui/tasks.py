"""What the page can ask for, and the prompts that PaliGemma knows for it."""

from __future__ import annotations

from enum import StrEnum

from ..common import prompt as prompts
from ..common.errors import OptionError, PromptError


class Task(StrEnum):
    """The choices of the task picker, as they are shown."""

    caption = "Caption"
    question = "Question"
    detect = "Detect"
    segment = "Segment"
    ocr = "Read text"
    free = "Free prompt"

    @property
    def needs_text(self) -> bool:
        """Whether the user has to write something."""
        return self not in (Task.caption, Task.ocr)

    @property
    def has_language(self) -> bool:
        """Whether the prompt names the answer's language."""
        return self in (Task.caption, Task.question)


# of the released models' training, by their codes (https://ai.google.dev/gemma/docs/paligemma/prompt-system-instructions)
LANGUAGES = {
    "English": "en", "Arabic": "ar", "Bengali": "bn", "Chinese": "zh", "Croatian": "hr", "Czech": "cs", "Danish": "da",
    "Dutch": "nl", "Filipino": "fil", "Finnish": "fi", "French": "fr", "German": "de", "Greek": "el", "Hebrew": "he", "Hindi": "hi",
    "Hungarian": "hu", "Indonesian": "id", "Italian": "it", "Japanese": "ja", "Korean": "ko", "Māori": "mi", "Norwegian": "no",
    "Persian": "fa", "Polish": "pl", "Portuguese": "pt", "Romanian": "ro", "Russian": "ru", "Spanish": "es",
    "Swahili": "sw", "Swedish": "sv", "Telugu": "te", "Thai": "th", "Turkish": "tr", "Ukrainian": "uk", "Vietnamese": "vi",
}  # fmt: skip


def write_prompt(task: str, text: str | None = None, language: str | None = "en") -> str:
    """The prompt for a task. Things to locate are separated by ";" or ",".

    Raises:
        OptionError: there is no such task.
        PromptError: the task needs a text, and there is none; or the language is no code.
    """
    if task not in list(Task):
        raise OptionError(f"there is no task {task!r}; choose one of {', '.join(Task)}")
    wanted, written, code = Task(task), (text or "").strip(), (language or "en").strip()
    text = " ".join(written.split())
    if wanted.needs_text and not text:
        raise PromptError(_missing(wanted))
    if wanted.has_language and not code.replace("-", "").isalnum():
        raise PromptError(f"{code!r} is no language code; write one such as en, de or zh")
    match wanted:
        case Task.caption:
            return prompts.caption(code)
        case Task.question:
            return prompts.answer(text, code)
        case Task.ocr:
            return prompts.ocr()
        case Task.free:
            return written  # as it is: some fine-tuned models were taught with line breaks
    return (prompts.detect if wanted == Task.detect else prompts.segment)(*_things(text))


def _things(text: str) -> list[str]:
    """Raises PromptError where only separators are left."""
    things = [thing for part in text.split(";") for thing in (word.strip() for word in part.split(",")) if thing]
    if not things:
        raise PromptError(_missing(Task.detect))
    return things


def _missing(task: Task) -> str:
    match task:
        case Task.question:
            return "write a question, such as: what is on the table?"
        case Task.free:
            return "write a prompt, such as: caption en"
    return "write what to look for, such as: cat ; dog"
