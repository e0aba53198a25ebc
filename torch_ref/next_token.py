"""From the scores of the last position to the next token, on the device. Twin of mlx_paligemma/next_token.py.

Sampling with its filters, the grammar of answers about places, and what is told of the tokens chosen.
Axes: B rows, V vocabulary rows, M objects that fit into an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlx_paligemma.common.decoding import Request
from mlx_paligemma.common.grammar import BOXED, HASH_FACTOR, HASH_MASK, LABEL, LOC1, MASKED, GrammarPlan, Kind
from mlx_paligemma.common.locations import NEAR
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.common.tokenizer import NUM_LOC


class GrammarWalk:
    """Where each row stands in the grammar, and the objects that it has named so far. Unused places hold -1."""

    def __init__(self, plan: GrammarPlan, device: torch.device):
        grammar, rows, objects = plan.grammar, len(plan.start), plan.capacity
        self.device, self.first_loc, self.eos = device, grammar.first_loc, grammar.eos
        tables = (grammar.kinds, grammar.allowed, grammar.following, grammar.cost, plan.start, plan.budget, plan.names)
        placed = [torch.from_numpy(table).to(device) for table in tables]
        self.kinds, self.allowed, self.following, self.cost, self.state, self.left, self.names = placed
        ends = [kind in (Kind.SEPARATOR, Kind.EOS) for kind in Kind]
        self.is_end = torch.tensor(ends, device=device)  # bool [K]: kinds that end an object
        self.short_hashes, self.short_lengths = torch.from_numpy(plan.prefixes).to(device).unbind(-1)
        self.box = torch.full((rows, 4), -2, device=device)  # y0, x0, y1, x1 of the object being written
        self.hash, self.length = torch.zeros((2, rows), dtype=torch.int64, device=device)  # of its label so far
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # objects before it
        self.boxes = torch.full((rows, objects, 4), -1, device=device)
        self.hashes, self.lengths = torch.full((2, rows, objects), -1, device=device)

    def possible(self) -> Tensor:
        """Bool [B, V]: the tokens that may come next. Never none: the form comes before the rules about boxes."""
        kinds = self.allowed[self.state] & ~(self._is_repeated()[:, None] & self.is_end)
        form = kinds[:, self.kinds]
        fine = form & ~self._banned(form.shape[1])
        return torch.where(fine.any(-1, keepdim=True), fine, form)

    def in_budget(self, tokens: Tensor) -> Tensor:
        """Int [B] -> int [B]: eos where the answer could not be ended in time after this token."""
        return torch.where(self.cost[self.state, self.kinds[tokens]] > self.left, self.eos, tokens)

    def advance(self, tokens: Tensor) -> None:
        """Take the next token of every row, int [B]."""
        kind = self.kinds[tokens]
        in_object = self._in_object()
        self._store(in_object & (kind == Kind.SEPARATOR))
        is_loc = (kind == Kind.LOC) & (self.state != 0)
        place = torch.where((self.state >= LOC1) & (self.state < BOXED), self.state - LOC1 + 1, 0)[:, None]
        box = torch.where(place == 0, -2, self.box)
        box = torch.where(torch.arange(4, device=self.device) == place, (tokens - self.first_loc)[:, None], box)
        self.box = torch.where(is_loc[:, None], box, self.box)
        is_label = in_object & ((kind == Kind.TEXT) | (kind == Kind.BLANK))
        longer = (self.hash * HASH_FACTOR + tokens + 1) & HASH_MASK
        self.hash = torch.where(is_loc, 0, torch.where(is_label, longer, self.hash))
        self.length = torch.where(is_loc, 0, self.length + is_label)
        self.state, self.left = self.following[self.state, kind], self.left - 1

    def _in_object(self) -> Tensor:
        """Bool [B]: all four loc tokens are there, and the label may be written or ended."""
        return (self.state == BOXED) | (self.state == MASKED) | (self.state == LABEL)

    def _twins(self) -> Tensor:
        """Bool [B, M]: earlier objects with exactly this box."""
        return (self.boxes == self.box[:, None]).all(-1) & self._in_object()[:, None]

    def _is_repeated(self) -> Tensor:
        """Bool [B]: to end the object here would repeat an earlier one."""
        same = (self.hashes == self.hash[:, None]) & (self.lengths == self.length[:, None])
        return (self._twins() & same).any(-1)

    def _banned(self, rows: int) -> Tensor:
        """Bool [B, V]: loc tokens that would reverse a box, and tokens that would make an object for the second time."""
        ids = torch.arange(rows, device=self.device)
        least = torch.where(self.state == LOC1 + 1, self.box[:, 0], torch.where(self.state == LOC1 + 2, self.box[:, 1], 0))
        reversed_box = (ids >= self.first_loc) & (ids < self.first_loc + least[:, None])
        again = torch.zeros((len(least), rows + 1), dtype=torch.bool, device=self.device)  # the last column takes what bans nothing
        again.scatter_(1, torch.cat([self._last_bins(rows), self._last_words(rows)], dim=1), True)
        return reversed_box | again[:, :-1]

    def _last_bins(self, none: int) -> Tensor:
        """Int [B, M]: loc tokens that would complete a box which every label of the prompt has got already; else `none`."""
        begun = (self.boxes[..., :3] == self.box[:, None, :3]).all(-1) & (self.state == LOC1 + 2)[:, None]
        times = (self.boxes[:, :, None] == self.boxes[:, None]).all(-1).sum(-1)
        return torch.where(begun & (times >= self.names[:, None]), self.first_loc + self.boxes[..., 3], none)

    def _last_words(self, none: int) -> Tensor:
        """Int [B, M]: tokens that would complete the label of an earlier object with this box; else `none`.

        Not where the prompt names something that begins with that label: "person" may still become "person with hat".
        """
        short = self.hashes[..., None] == self.short_hashes[:, None]
        short = (short & (self.lengths[..., None] == self.short_lengths[:, None])).any(-1)
        token = (self.hashes - (self.hash * HASH_FACTOR + 1)[:, None]) & HASH_MASK
        ends = self._twins() & (self.lengths == self.length[:, None] + 1) & (token < none) & ~short
        return torch.where(ends, token, none)

    def _store(self, ended: Tensor) -> None:
        here = (torch.arange(self.boxes.shape[1], device=self.device) == self.count[:, None]) & ended[:, None]
        self.boxes = torch.where(here[..., None], self.box[:, None], self.boxes)
        self.hashes = torch.where(here, self.hash[:, None], self.hashes)
        self.lengths = torch.where(here, self.length[:, None], self.lengths)
        self.count = self.count + ended


class TokenChooser:
    """Chooses the next token of every row, step by step."""

    def __init__(self, request: Request, device: torch.device):
        self.options, self.first_loc = request.options, request.first_loc
        self.walk = None if request.plan is None else GrammarWalk(request.plan, device)
        self.noise = torch.Generator(device).manual_seed(request.options.first_seed())

    def __call__(self, logits: Tensor) -> tuple[Tensor, ...]:
        """[B, 1, V] -> the fields of a `Step`: tokens int [B], -1 in rows with a score that is not finite; their
        log-probability and the probability of the bins around them, float32 [B]; bool [B] each, whether the grammar changed
        them, and whether it did so to end in time; where asked for, the likeliest tokens, int [B, K], and their
        log-probabilities.
        """
        scores = logits[:, -1].float()
        finite = scores.sum(-1).isfinite()  # NaN and infinity anywhere show in the sum
        noise = self._noise(scores)
        tokens = held = free = _choose(scores, self.options, noise)
        if self.walk is not None:
            held = _choose(scores.masked_fill(~self.walk.possible(), -torch.inf), self.options, noise)
            tokens = self.walk.in_budget(held)
            self.walk.advance(tokens)
        return (
            torch.where(finite, tokens, -1),
            self._logprobs(scores, tokens),
            self._nearby(scores, tokens),
            tokens != free,
            tokens != held,
            *(self._likeliest(scores) if self.options.top_logprobs else ()),
        )

    def _noise(self, scores: Tensor) -> Tensor | None:
        """[V], the same for every row of a batch; None: greedy. One draw per step: the first tokens do not depend on max_tokens."""
        if self.options.is_greedy:
            return None
        uniform = torch.rand(scores.shape[-1:], generator=self.noise, device=scores.device)
        return -torch.log(-torch.log(uniform.clamp(min=1e-30)))

    def _logprobs(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """float32 [B], where they are asked for: the sum over the vocabulary takes its time."""
        if not self.options.token_logprobs:
            return scores.new_zeros(len(tokens))
        return scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(-1)

    def _likeliest(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Int and float32 [B, K]: the likeliest tokens; equal ones in the order of their ids, as the choice itself takes them."""
        ordered, tokens = scores.sort(descending=True, stable=True)
        most = self.options.top_logprobs
        return tokens[:, :most], ordered[:, :most] - scores.logsumexp(-1, keepdim=True)

    def _nearby(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """float32 [B]: what the bins around a loc token have together of all bins' probability; 0 for other tokens."""
        of_bins = scores[:, self.first_loc : self.first_loc + NUM_LOC].softmax(-1)
        bins = (tokens - self.first_loc)[:, None]
        near = ((torch.arange(of_bins.shape[1], device=bins.device) - bins).abs() <= NEAR) & (bins >= 0) & (bins < NUM_LOC)
        return torch.where(near, of_bins, 0.0).sum(-1)


def _choose(scores: Tensor, options: SamplingOptions, noise: Tensor | None) -> Tensor:
    """float32 [B, V] -> int [B]; noise [V] is the same for every row, None: greedy."""
    if noise is not None:
        scores = _filtered(scores / options.finite_temperature, options) + noise
    return scores.argmax(-1)


def _filtered(scores: Tensor, options: SamplingOptions) -> Tensor:
    """float32 [B, V] with -inf where top_k, top_p or min_p takes a token out."""
    if 0 < options.top_k < scores.shape[-1]:
        least = scores.topk(options.top_k).values.min(-1, keepdim=True).values
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1:
        ordered = scores.sort(descending=True).values
        likely = ordered.softmax(-1)
        kept = likely.cumsum(-1) - likely < options.top_p
        least = ordered.masked_fill(~kept, torch.inf).min(-1, keepdim=True).values
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.min_p > 0:
        likely = scores.softmax(-1)
        scores = scores.masked_fill(likely < options.min_p * likely.max(-1, keepdim=True).values, -torch.inf)
    return scores
