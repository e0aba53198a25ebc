"""Whatever the Hub's client raises becomes one line with the command that helps."""

import pytest

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub_errors import download_error, upload_error


def answer(status, kind="HfHubHTTPError"):
    """What the client makes of an HTTP status."""
    import huggingface_hub.errors as hub

    class Response:
        status_code, headers, request = status, {}, None

    return getattr(hub, kind)(f"{status} Error.\n\nIt is so", response=Response())


def caused(error, cause):
    error.__cause__ = cause
    return error


def errors():
    from huggingface_hub import errors as hub

    return {
        "gated": (answer(403, "GatedRepoError"), "/org/name, then run `hf auth login`"),
        "missing": (answer(404, "RepositoryNotFoundError"), "check the name, or run `hf auth login`"),
        "revision": (answer(404, "RevisionNotFoundError"), "has no revision 'v9' on the Hub"),
        "name": (hub.HFValidationError("no id"), "is neither a folder here nor a Hub id"),
        "offline": (hub.OfflineModeIsEnabled("off"), "unset it and run `hf download org/name --revision v9` once"),
        "token": (answer(401), "make another one and run `hf auth login`"),
        "rights": (answer(403), "(403 Error. It is so); give it the right to read, or run `hf auth login`"),
        "requests": (answer(429), "the Hub wants fewer requests; wait some minutes or run `hf auth login`"),
        "server": (answer(500), "the Hub answers 500; wait some minutes and run `hf download org/name --revision v9`, or this"),
        "small file": (caused(hub.LocalEntryNotFoundError("none"), answer(502)), "the Hub answers 502"),
        "disk": (OSError(28, "No space left on device"), "free some space, or set HF_HOME to a folder on another disk"),
        "rights here": (PermissionError(13, "Permission denied", "/cache"), "set HF_HOME to a folder that you may write to"),
        "network": (RuntimeError("peer\nclosed"), "to the end (peer closed); run the command again to go on where it stopped"),
        "nothing said": (TimeoutError(), "to the end (TimeoutError); run the command again"),
    }


@pytest.mark.parametrize("case", errors())
def test_a_download_that_fails_says_why_and_what_to_do_in_one_line(case):
    error, words = errors()[case]
    message = str(download_error(error, "org/name", "v9", begun=True))
    assert message.startswith("org/name ")
    assert words in message
    assert "\n" not in message


def test_before_it_has_begun_a_download_asks_to_go_online():
    message = str(download_error(RuntimeError("no route"), "org/name", None, begun=False))
    assert message.endswith("the Hub cannot be reached (no route); go online and run `hf download org/name` once")


def test_our_own_errors_pass_as_they_are():
    error = CheckpointError("config.json is of another model")
    assert download_error(error, "org/name", None, begun=True) is error


UPLOADS = {
    "token": (answer(401), "the Hub refuses the token"),
    "rights": (answer(403), "this token may not write there"),
    "branch": (answer(404, "RevisionNotFoundError"), "this token may not write there"),
    "one file": (caused(RuntimeError("one file"), answer(500)), "the Hub answers 500 (500 Error. It is so); wait some minutes"),
    "network": (RuntimeError("no\nroute"), "the Hub cannot be reached (no route); check the network"),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_an_upload_that_fails_says_why_and_what_to_do_in_one_line(case, tmp_path):
    error, words = UPLOADS[case]
    message = str(upload_error(error, "org/name", tmp_path))
    assert words in message
    assert f"run `hf upload org/name {tmp_path}` to go on" in message
    assert "\n" not in message
