"""The Hugging Face Hub: whether it answers, and whether it lets this user at the weights. Never waits for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread

from .check import Check, Probes, ok, skipped, warning

TIMEOUT = 3.0  # seconds, for each step of a request
PATIENCE = 4.0  # seconds, for a whole probe; to look up a name, for one, can take far longer than any timeout
GATED = "google/paligemma2-3b-mix-448"
OFFLINE = "offline (HF_HUB_OFFLINE)"
UNREACHED = "models that are on this machine work without it; for downloads check the network and its proxy"


def hub_probes() -> Probes:
    """Reachability and token."""
    return {"Hub": lambda: _bounded(_reach), "Hub token": lambda: _bounded(_token)}


def _bounded(probe: Callable[[], Check]) -> Check:
    """Run a probe for a bounded time. No error in here matters: it becomes a warning."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return skipped(OFFLINE)
    answer: Queue[Check] = Queue()
    Thread(target=lambda: answer.put(_guarded(probe)), daemon=True).start()
    try:
        return answer.get(timeout=PATIENCE)
    except Empty:
        return warning(f"no answer within {PATIENCE:g} s", UNREACHED)


def _guarded(probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - the Hub's client lets through what its network libraries raise
        return warning(f"cannot be reached ({type(error).__name__}: {error})", UNREACHED)


def _reach() -> Check:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT

    started = time.perf_counter()
    HfApi().model_info(GATED, timeout=TIMEOUT, token=False)  # what it says of a gated model is public
    return ok(f"{ENDPOINT} answers within {time.perf_counter() - started:.1f} s")


def _token() -> Check:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    token = get_token()
    if token is None:
        return warning("none", f"for PaliGemma's weights accept the licence at {ENDPOINT}/{GATED}, then run: hf auth login")
    try:
        HfApi(token=token).auth_check(GATED)
    except GatedRepoError:
        return warning(f"gives no access to {GATED}", f"accept the licence at {ENDPOINT}/{GATED}")
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        return warning("the Hub refuses it", f"make a new one at {ENDPOINT}/settings/tokens, then run: hf auth login")
    return ok(f"gives access to {GATED}")
