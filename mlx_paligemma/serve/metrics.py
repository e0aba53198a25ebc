"""Figures of a running server in Prometheus's text form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # upper ends of the histograms' bins


class Metrics:
    """Counts what happens. One for each server, so that two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ["path", "status"]
        self._requests = Counter("mlx_paligemma_requests", "Requests that were answered.", names, registry=self._registry)
        self._tokens = Counter("mlx_paligemma_tokens", "Tokens read and written.", ["kind"], registry=self._registry)
        self._cancelled = Counter("mlx_paligemma_cancelled", "Answers that nobody waited for.", registry=self._registry)
        self._seconds = self._histogram("request_seconds", "From the request's head to the end of its answer.", ["path"])
        self._first = self._histogram("time_to_first_token_seconds", "From the whole request to the first token.")
        self._token = self._histogram("time_per_token_seconds", "Between the tokens of one answer.")

    def request(self, path: str, status: int, seconds: float) -> None:
        """An answered request. `path` is a known one, or "other"."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def answer(self, prompt_tokens: int, generated: int, first: float | None, seconds: float) -> None:
        """A finished answer: its tokens, seconds to the first, and to the last."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("generated").inc(generated)
        if first is not None:
            self._first.observe(first)
            if generated > 1:
                self._token.observe((seconds - first) / (generated - 1))

    def cancelled(self) -> None:
        """An answer that was given up."""
        self._cancelled.inc()

    def gauges(self, values: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Figures that are asked for when they are wanted: name to what it means and who knows it."""
        for name, (meaning, value) in values.items():
            Gauge(f"mlx_paligemma_{name}", meaning, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(f"mlx_paligemma_{name}", meaning, labels or [], buckets=SECONDS, registry=self._registry)
