"""From the scores of the last position to the next token, on the device. Twin of torch_ref/next_token.py.

Sampling with its filters, the grammar of answers about places, and what is told of the tokens chosen.
Axes: B rows, V vocabulary rows, M objects that fit into an answer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from .common.decoding import Request
from .common.grammar import BOXED, HASH_FACTOR, LABEL, LOC1, MASKED, GrammarPlan, Kind
from .common.locations import NEAR
from .common.sampling import SamplingOptions
from .common.tokenizer import NUM_LOC
from .device import on_gpu


class GrammarWalk:
    """Where each row stands in the grammar, and the objects that it has named so far. Unused places hold -1."""

    def __init__(self, plan: GrammarPlan):
        grammar, rows, objects = plan.grammar, len(plan.start), plan.capacity
        self.first_loc, self.eos = grammar.first_loc, grammar.eos
        self.kinds, self.allowed = mx.array(grammar.kinds), mx.array(grammar.allowed)
        self.following, self.cost = mx.array(grammar.following), mx.array(grammar.cost)
        self.is_end = mx.array([kind in (Kind.SEPARATOR, Kind.EOS) for kind in Kind])  # bool [K]: kinds that end an object
        self.state, self.left, self.names = mx.array(plan.start), mx.array(plan.budget), mx.array(plan.names)
        self.short_hashes = mx.array(plan.prefixes[..., 0]).astype(mx.uint32)
        self.short_lengths = mx.array(plan.prefixes[..., 1]).astype(mx.int32)
        self.box = mx.full((rows, 4), -2, dtype=mx.int32)  # y0, x0, y1, x1 of the object being written
        self.hash, self.length = mx.zeros(rows, dtype=mx.uint32), mx.zeros(rows, dtype=mx.int32)  # of its label so far
        self.count = mx.zeros(rows, dtype=mx.int32)  # objects before it
        self.boxes = mx.full((rows, objects, 4), -1, dtype=mx.int32)
        self.hashes, self.lengths = mx.zeros((rows, objects), dtype=mx.uint32), mx.full((rows, objects), -1, dtype=mx.int32)

    def possible(self) -> mx.array:
        """Bool [B, V]: the tokens that may come next. Never none: the form comes before the rules about boxes."""
        kinds = self.allowed[self.state] & ~(self._is_repeated()[:, None] & self.is_end)
        form = kinds[:, self.kinds]
        fine = form & ~self._banned(form.shape[1])
        return mx.where(fine.any(-1, keepdims=True), fine, form)

    def in_budget(self, tokens: mx.array) -> mx.array:
        """Int [B] -> int [B]: eos where the answer could not be ended in time after this token."""
        return mx.where(self.cost[self.state, self.kinds[tokens]] > self.left, self.eos, tokens)

    def advance(self, tokens: mx.array) -> None:
        """Take the next token of every row, int [B]."""
        kind = self.kinds[tokens]
        in_object = self._in_object()
        self._store(in_object & (kind == Kind.SEPARATOR))
        is_loc = (kind == Kind.LOC) & (self.state != 0)
        place = mx.where((self.state >= LOC1) & (self.state < BOXED), self.state - LOC1 + 1, 0)[:, None]
        box = mx.where(place == 0, -2, self.box)
        box = mx.where(mx.arange(4) == place, (tokens - self.first_loc)[:, None], box)
        self.box = mx.where(is_loc[:, None], box, self.box)
        is_label = in_object & ((kind == Kind.TEXT) | (kind == Kind.BLANK))
        longer = self.hash * mx.array(HASH_FACTOR, dtype=mx.uint32) + tokens.astype(mx.uint32) + 1
        self.hash = mx.where(is_loc, 0, mx.where(is_label, longer, self.hash)).astype(mx.uint32)
        self.length = mx.where(is_loc, 0, self.length + is_label)
        self.state, self.left = self.following[self.state, kind], self.left - 1

    def _in_object(self) -> mx.array:
        """Bool [B]: all four loc tokens are there, and the label may be written or ended."""
        return (self.state == BOXED) | (self.state == MASKED) | (self.state == LABEL)

    def _twins(self) -> mx.array:
        """Bool [B, M]: earlier objects with exactly this box."""
        return (self.boxes == self.box[:, None]).all(-1) & self._in_object()[:, None]

    def _is_repeated(self) -> mx.array:
        """Bool [B]: to end the object here would repeat an earlier one."""
        same = (self.hashes == self.hash[:, None]) & (self.lengths == self.length[:, None])
        return (self._twins() & same).any(-1)

    def _banned(self, rows: int) -> mx.array:
        """Bool [B, V]: loc tokens that would reverse a box, and tokens that would make an object for the second time."""
        ids = mx.arange(rows)
        least = mx.where(self.state == LOC1 + 1, self.box[:, 0], mx.where(self.state == LOC1 + 2, self.box[:, 1], 0))
        reversed_box = (ids >= self.first_loc) & (ids < self.first_loc + least[:, None])
        again = mx.zeros((reversed_box.shape[0], rows + 1), dtype=mx.bool_)  # the last column takes what bans nothing
        places = mx.concatenate([self._last_bins(rows), self._last_words(rows)], axis=1)
        again[mx.arange(len(places))[:, None], places] = True
        return reversed_box | again[:, :-1]

    def _last_bins(self, none: int) -> mx.array:
        """Int [B, M]: loc tokens that would complete a box which every label of the prompt has got already; else `none`."""
        begun = (self.boxes[..., :3] == self.box[:, None, :3]).all(-1) & (self.state == LOC1 + 2)[:, None]
        times = (self.boxes[:, :, None] == self.boxes[:, None]).all(-1).sum(-1)
        return mx.where(begun & (times >= self.names[:, None]), self.first_loc + self.boxes[..., 3], none)

    def _last_words(self, none: int) -> mx.array:
        """Int [B, M]: tokens that would complete the label of an earlier object with this box; else `none`.

        Not where the prompt names something that begins with that label: "person" may still become "person with hat".
        """
        short = self.hashes[..., None] == self.short_hashes[:, None]
        short = (short & (self.lengths[..., None] == self.short_lengths[:, None])).any(-1)
        token = self.hashes - (self.hash * mx.array(HASH_FACTOR, dtype=mx.uint32) + 1)[:, None]
        ends = self._twins() & (self.lengths == self.length[:, None] + 1) & (token < none) & ~short
        return mx.where(ends, token.astype(mx.int32), none)

    def _store(self, ended: mx.array) -> None:
        here = (mx.arange(self.boxes.shape[1]) == self.count[:, None]) & ended[:, None]
        self.boxes = mx.where(here[..., None], self.box[:, None], self.boxes)
        self.hashes = mx.where(here, self.hash[:, None], self.hashes)
        self.lengths = mx.where(here, self.length[:, None], self.lengths)
        self.count = self.count + ended


class TokenChooser:
    """Chooses the next token of every row, step by step."""

    def __init__(self, request: Request, compiled: bool | None = None):
        """`compiled` None: where MLX computes on a GPU. For the CPU a compiler would have to be started for each new kernel."""
        self.options, self.first_loc = request.options, request.first_loc
        keep = mx.compile if (on_gpu() if compiled is None else compiled) else lambda function: function
        self._pick, self._told = keep(partial(_choose, request.options)), keep(self._told_of)
        self._top = keep(self._likeliest)
        self.walk = None if request.plan is None else GrammarWalk(request.plan)
        self.key = mx.random.key(request.options.first_seed())

    def __call__(self, logits: mx.array, rows: tuple[int, int] | None = None) -> tuple[mx.array, ...]:
        """[B, 1, V] -> the fields of a `Step`: tokens int [B], -1 in rows with a score that is not finite; their log-probability,
        if asked for, and the probability of the bins around them, float32 [B]; bool [B] each, whether the grammar changed them,
        and whether it did so to end in time; where asked for, the likeliest tokens, int [B, K], and their log-probabilities.
        With `rows` the logits are those of this part of the vocabulary, the only tokens that the grammar allows.
        """
        scores = logits[:, -1].astype(mx.float32)
        finite = mx.isfinite(scores.sum(axis=-1))  # NaN and infinity anywhere show in the sum
        if self.walk is not None and rows is not None:
            all_rows = mx.full((len(scores), len(self.walk.kinds)), -mx.inf)
            all_rows[:, slice(*rows)] = scores
            scores = all_rows
        noise = self._noise(scores.shape[-1])
        tokens = held = free = self._pick(scores, noise)
        if self.walk is not None:
            held = self._pick(mx.where(self.walk.possible(), scores, -mx.inf), noise)
            tokens = self.walk.in_budget(held)
            self.walk.advance(tokens)
        likeliest = self._top(scores) if self.options.top_logprobs else ()
        return mx.where(finite, tokens, -1), *self._told(scores, tokens), tokens != free, tokens != held, *likeliest

    def state(self) -> dict[str, Any]:
        """Where the grammar stands, to come back to."""
        return {} if self.walk is None else {**vars(self.walk)}

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to what `state` gave."""
        if self.walk is not None:
            vars(self.walk).update(state)

    def _noise(self, rows: int) -> mx.array | None:
        """[V], the same for every row of a batch; None: greedy. One key per step: the first tokens do not depend on max_tokens."""
        if self.options.is_greedy:
            return None
        self.key, now = mx.random.split(self.key)
        return mx.random.gumbel((rows,), key=now)

    def _told_of(self, scores: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
        return self._logprobs(scores, tokens), self._nearby(scores, tokens)

    def _logprobs(self, scores: mx.array, tokens: mx.array) -> mx.array:
        """float32 [B], where they are asked for: the sum over the vocabulary takes its time."""
        if not self.options.token_logprobs:
            return mx.zeros(len(tokens))
        return mx.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0] - mx.logsumexp(scores, axis=-1)

    def _likeliest(self, scores: mx.array) -> tuple[mx.array, mx.array]:
        """Int and float32 [B, K]: the likeliest tokens; equal ones in the order of their ids, as the choice itself takes them.

        MLX's sorts promise no order of equal scores, of which bfloat16 gives many; K is small.
        """
        found, left = [], scores
        for _ in range(self.options.top_logprobs):
            found.append(mx.argmax(left, axis=-1, keepdims=True).astype(mx.int32))
            left = mx.put_along_axis(left, found[-1], mx.array(-mx.inf), axis=-1)
        tokens = mx.concatenate(found, axis=-1)
        return tokens, mx.take_along_axis(scores, tokens, axis=-1) - mx.logsumexp(scores, axis=-1, keepdims=True)

    def _nearby(self, scores: mx.array, tokens: mx.array) -> mx.array:
        """float32 [B]: what the bins around a loc token have together of all bins' probability; 0 for other tokens."""
        of_bins = mx.softmax(scores[:, self.first_loc : self.first_loc + NUM_LOC], axis=-1)
        bins = (tokens - self.first_loc)[:, None]
        near = (mx.abs(mx.arange(of_bins.shape[1]) - bins) <= NEAR) & (bins >= 0) & (bins < NUM_LOC)
        return mx.where(near, of_bins, 0).sum(axis=-1)


def _choose(options: SamplingOptions, scores: mx.array, noise: mx.array | None) -> mx.array:
    """float32 [B, V] -> int32 [B]; noise [V] is the same for every row, None: greedy."""
    if noise is not None:
        scores = _filtered(scores / options.finite_temperature, options) + noise
    return mx.argmax(scores, axis=-1).astype(mx.int32)


def _filtered(scores: mx.array, options: SamplingOptions) -> mx.array:
    """float32 [B, V] with -inf where top_k, top_p or min_p takes a token out."""
    if 0 < options.top_k < scores.shape[-1]:
        least = mx.topk(scores, options.top_k, axis=-1).min(axis=-1, keepdims=True)
        scores = mx.where(scores < least, -mx.inf, scores)
    if options.top_p < 1:
        ordered = -mx.sort(-scores, axis=-1)
        likely = mx.softmax(ordered, axis=-1)
        kept = mx.cumsum(likely, axis=-1) - likely < options.top_p
        least = mx.where(kept, ordered, mx.inf).min(axis=-1, keepdims=True)
        scores = mx.where(scores < least, -mx.inf, scores)
    if options.min_p > 0:
        likely = mx.softmax(scores, axis=-1)
        scores = mx.where(likely < options.min_p * likely.max(axis=-1, keepdims=True), -mx.inf, scores)
    return scores
