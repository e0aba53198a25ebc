"""The program `chat`: what it prints where, how Ctrl-C and Ctrl-D act, and that it never ends in a traceback."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from program import PICTURE, one_line, program

LONG_NONSENSE = ("--temp", "20", "-m", "1900", "--seed", "1")
PATIENCE = 120  # seconds
QUESTIONS = ("caption en", "detect star", "answer en what color is the star?")


@pytest.fixture
def run(monkeypatch, capfd):
    return program(monkeypatch, capfd)


def chat(*arguments, **options):
    """The program in a process of its own, with pipes unless told otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
    return subprocess.Popen([sys.executable, "-m", "mlx_paligemma", "chat", *map(str, arguments)], **pipes)


def piped(text, *arguments):
    """What comes of lines on a pipe: (exit code, stdout, stderr)."""
    process = chat(*arguments)
    out, err = process.communicate(text if isinstance(text, bytes) else text.encode(), timeout=PATIENCE)
    assert b"Traceback" not in out + err, err.decode()
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """The program on a terminal of its own; its output comes through `until`."""

    def __init__(self, *arguments):
        self.seen = ""
        self.end, inner = pty.openpty()
        modes = termios.tcgetattr(inner)
        modes[3] |= termios.NOFLSH  # else Ctrl-C empties the terminal's buffers, now and then with the next prompt in them
        termios.tcsetattr(inner, termios.TCSANOW, modes)
        self.process = chat(*arguments, stdin=inner, stdout=inner, stderr=inner, start_new_session=True, preexec_fn=self._own)
        os.close(inner)

    @staticmethod
    def _own():
        import fcntl

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it as on a real terminal

    def until(self, word, keys=""):
        """The output up to a word, which is taken away. Types `keys` first, and again after 5 seconds of waiting.

        Python's readline does not see a Ctrl-C that comes between its prompt and its waiting for input; a user presses again.
        """
        deadline, typed = time.monotonic() + PATIENCE, 0.0
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if keys and time.monotonic() > typed + 5:
                typed = time.monotonic()
                self.type(keys)
            if select.select([self.end], [], [], 1)[0]:
                self.seen += os.read(self.end, 4096).decode(errors="replace")
            assert "Traceback" not in self.seen
        before, _, self.seen = self.seen.partition(word)
        return before

    def type(self, text):
        os.write(self.end, text.encode())

    def leave(self):
        code = self.process.wait(PATIENCE)
        os.close(self.end)
        return code


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_piped_questions_get_the_answers_of_generate_and_no_prompt_is_shown(run, backend):
    alone = [run("generate", PICTURE, "-p", question, "--backend", backend)[1] for question in QUESTIONS]
    assert piped("\n".join(QUESTIONS), PICTURE, "--backend", backend) == (0, "".join(alone), "")


def test_the_second_question_skips_the_vision_tower():
    code, _, err = piped("caption en\ndetect star\n", PICTURE, "-v")
    costs = [line for line in err.splitlines() if line.startswith("Picture encoded")]
    assert code == 0
    assert [line.split(". ")[0] for line in costs] == ["Picture encoded: yes", "Picture encoded: no (cached)"]


def test_what_is_wrong_in_a_line_is_one_line_and_the_rest_is_answered():
    lines = [b"", b"/image /no/such.png", b"detect " + b"cat " * 3000, b"answer en \xff\xfe?", b"caption en"]
    code, out, err = piped(b"\n".join(lines), PICTURE)
    assert code == 0
    assert out.count("\n") == 2  # to the line that was no UTF-8, and to the last one
    assert [line.startswith("error: ") for line in err.splitlines()] == [True] * 3
    assert "empty" in err and "/no/such.png" in err and "context" in err


def test_save_writes_the_drawing_and_the_conversation(tmp_path):
    from PIL import Image

    code, _, err = piped(f"detect star\n/save {tmp_path}/a.png\n/save {tmp_path}/a.json\n/save {PICTURE}\n", PICTURE)
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["wrote", "wrote", "error:"]
    original, drawn = Image.open(PICTURE).convert("RGB"), Image.open(tmp_path / "a.png").convert("RGB")
    assert drawn.size == original.size
    assert drawn.tobytes() != original.tobytes()
    (record,) = json.loads((tmp_path / "a.json").read_text())
    assert (record["prompt"], record["finish_reason"]) == ("detect star", "stop")


def test_without_a_picture_one_can_be_chosen():
    code, out, err = piped(f"caption en\n/image {PICTURE}\ncaption en\n")
    assert (code, out.count("\n")) == (0, 1)
    one_line(err, "/image PATH")


def test_no_input_at_all_ends_well():
    assert piped("", PICTURE) == (0, "", "")
    process = chat(PICTURE, stdin=subprocess.DEVNULL)
    assert (*process.communicate(timeout=PATIENCE), process.returncode) == (b"", b"", 0)


def test_nothing_after_quit_is_answered():
    assert piped("/quit\ncaption en\n", PICTURE) == (0, "", "")


def test_a_wrong_picture_model_or_flag_ends_the_program_in_one_line(run):
    for arguments, code in ((("no.png",), 1), ((PICTURE, "--model", "/no/such"), 1), ((PICTURE, "--temp", "-1"), 2)):
        got, out, err = run("chat", *arguments)
        assert (got, out) == (code, "")
        one_line(err, "error: ")


def test_ctrl_c_stops_the_running_answer_alone(tmp_path):
    process = chat(PICTURE, *LONG_NONSENSE)
    for name in ("first.json", "both.json"):
        process.stdin.write(f"caption en\n/save {tmp_path / name}\n".encode())
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        while not (tmp_path / name).exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.read(process.stdout.fileno(), 2**16)  # all of it: an answer is written before the next line is read
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, b"")
    assert [line.split()[0] for line in err.decode().splitlines()] == ["stopped", "wrote"] * 2
    for record in json.loads((tmp_path / "both.json").read_text()):
        assert record["finish_reason"] == "cancelled"
        assert 0 < len(record["token_ids"]) < 1900


def test_on_a_terminal_ctrl_c_clears_the_line_and_ctrl_d_leaves():
    terminal = Terminal(PICTURE)
    assert "448 x 403" in terminal.until("> ")
    terminal.type("nonsense")
    terminal.until("nonsense")
    terminal.until("> ", keys="\x03")
    terminal.type("answer en what color is the star?\r")
    assert "nonsense" not in terminal.until("green")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0


def test_on_a_terminal_ctrl_c_stops_an_answer_and_the_next_is_given():
    terminal = Terminal(PICTURE, *LONG_NONSENSE)
    terminal.until("> ")
    for _ in range(2):
        terminal.type("caption en\r")
        terminal.until("caption en\r\n")
        time.sleep(1)  # into the answer
        terminal.until("stopped", keys="\x03")
        terminal.until("> ")
    terminal.type("/history\r")
    for word in ("1. ", "(stopped)", "2. ", "(stopped)", "> "):
        terminal.until(word)
    terminal.type("/quit\r")
    assert terminal.leave() == 0


def test_help_needs_neither_a_backend_nor_readline():
    lines = (
        "import sys",
        "from mlx_paligemma.cli.app import main",
        "sys.argv = ['mlx-paligemma', 'chat', '--help']",
        "try: main()",
        "finally: print(*sys.modules, file=sys.stderr)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not {"mlx", "torch", "readline", "av"} & set(done.stderr.split())
