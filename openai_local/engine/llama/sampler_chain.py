"""One row of logits to a token through llama.cpp's own samplers. Engine thread only.

They are applied one by one, so that what one of them leaves can be seen to: some of them fail on
candidates that were ruled out. What they assert or throw on, ``sampler_steps.check`` refuses.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Draw, Floats
from openai_local.engine.errors import Unsupported
from openai_local.engine.messages import SamplingParams
from openai_local.engine.sampler_steps import GREEDY_BELOW, active_steps, penalties_first

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# exp(-80) of the likeliest: what is below has no weight in a float, and its logarithm no value.
UNDERFLOW = np.float32(80)
# What llama.cpp's infill has room for: it throws on a longer token.
INFILL_BYTES = 512
# llama-server's.
MIROSTAT_M = 100
# Working out sequence breakers scans the whole vocabulary for each: 2 ms with 49k tokens.
MAX_PROTOTYPES = 16


class SamplerChains:
    """Makes the chains of one model, and knows what they share."""

    def __init__(self, model: Any, n_vocab: int, n_ctx: int) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self.n_vocab = n_vocab
        self.n_ctx = n_ctx
        self.candidates = np.empty(n_vocab, CANDIDATE)
        self.ids = np.arange(n_vocab, dtype=np.int32)
        self._prototypes: OrderedDict[object, Any] = OrderedDict()
        self._can_infill: bool | None = None

    def draw(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Draw:
        return ChainDraw(self, params, seed, prompt)

    def dry(self, params: SamplingParams) -> Any:
        """A sampler with its sequence breakers worked out."""
        window = self.window(params.dry_penalty_last_n)
        breakers = params.dry_sequence_breakers
        allowed = min(params.dry_allowed_length, self.n_ctx)
        key = (params.dry_multiplier, params.dry_base, allowed, window, breakers)
        prototype = self._prototypes.pop(key, None)
        if prototype is None:
            texts = [text.encode("utf-8", "replace") for text in breakers]
            array = (ctypes.c_char_p * len(texts))(*texts)
            prototype = lib.llama_sampler_init_dry(
                self._vocab, params.dry_multiplier, params.dry_base, allowed, window, array,
                len(texts),
            )  # fmt: skip
        self._prototypes[key] = prototype
        if len(self._prototypes) > MAX_PROTOTYPES:
            lib.llama_sampler_free(self._prototypes.popitem(last=False)[1])
        return lib.llama_sampler_clone(prototype)

    def infill(self) -> Any:
        """Raises Unsupported where llama.cpp's would end the process."""
        if self._can_infill is None:
            ends = (lib.llama_vocab_eot(self._vocab), lib.llama_vocab_eos(self._vocab))
            longest = max(map(self._n_bytes, range(self.n_vocab)))
            self._can_infill = max(ends) >= 0 and longest <= INFILL_BYTES
        if not self._can_infill:
            raise Unsupported("the sampler infill: its vocabulary has no end, or too long tokens")
        return lib.llama_sampler_init_infill(self._vocab)

    def _n_bytes(self, token: int) -> int:
        return int(abs(lib.llama_token_to_piece(self._vocab, token, None, 0, 0, False)))

    def window(self, n_last: int) -> int:
        """llama.cpp allocates as much: no more than a sequence can have."""
        return self.n_ctx if n_last < 0 else min(n_last, self.n_ctx)

    def close(self) -> None:
        while self._prototypes:
            lib.llama_sampler_free(self._prototypes.popitem()[1])


class ChainDraw:
    """Owns its samplers. The last one draws."""

    def __init__(
        self, chains: SamplerChains, params: SamplingParams, seed: int, prompt: Sequence[int]
    ) -> None:
        self._chains = chains
        self._params = params
        self._seed = seed
        self._samplers: list[Any] = []
        self._infill: Any = None
        # Those that remember tokens: all of the text, or what was generated alone.
        self._of_text: list[Any] = []
        self._of_completion: list[Any] = []
        try:
            for step in active_steps(params):
                if step != "penalties" or not penalties_first(params):
                    getattr(self, f"_add_{step}")()
            self._add_draw()
        except Exception:
            self.close()
            raise
        n_remembered = max(
            chains.window(params.repeat_last_n), chains.window(params.dry_penalty_last_n)
        )
        if self._of_text and n_remembered:
            for token in prompt[-n_remembered:]:
                self._feed(self._of_text, token)

    def draw(self, row: Floats) -> int:
        array = self._fill(row)
        for sampler, prepare in self._samplers:
            if prepare is not None:
                prepare(array)
            if array.size == 0:  # an assertion to some of them
                raise ArithmeticError("no token can be drawn")
            if sampler is self._infill:
                self._apply_infill(array)
            else:
                lib.llama_sampler_apply(sampler, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise ArithmeticError("no token can be drawn")
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        self._feed(self._of_text, token)
        self._feed(self._of_completion, token)

    def close(self) -> None:
        samplers, self._samplers = self._samplers, []
        self._of_text.clear()
        self._of_completion.clear()
        for sampler, _ in samplers:
            lib.llama_sampler_free(sampler)

    def _fill(self, row: Floats) -> Any:
        candidates = self._chains.candidates
        candidates["id"] = self._chains.ids
        candidates["logit"] = row
        array = lib.llama_token_data_array(_data(candidates), len(candidates), -1, False)
        _drop_ruled_out(array)
        return array

    def _add(self, sampler: Any, prepare: Callable[[Any], None] | None = None) -> Any:
        self._samplers.append((sampler, prepare))
        return sampler

    def _add_penalties(self) -> None:
        params, chains = self._params, self._chains
        window = chains.window(params.repeat_last_n)
        if window and params.repeat_penalty != 1:
            self._of_text.append(
                self._add(
                    lib.llama_sampler_init_penalties(
                        chains.n_vocab, window, params.repeat_penalty, 0.0, 0.0
                    )
                )
            )
        if params.frequency_penalty or params.presence_penalty:
            self._of_completion.append(
                self._add(
                    lib.llama_sampler_init_penalties(
                        chains.n_vocab,
                        chains.n_ctx,
                        1.0,
                        params.frequency_penalty,
                        params.presence_penalty,
                    )  # fmt: skip
                )
            )

    def _add_dry(self) -> None:
        self._of_text.append(self._add(self._chains.dry(self._params)))

    def _add_top_n_sigma(self) -> None:
        self._add(lib.llama_sampler_init_top_n_sigma(self._params.top_n_sigma))

    def _add_top_k(self) -> None:
        self._add(lib.llama_sampler_init_top_k(self._params.top_k), _drop_ruled_out)

    def _add_typ_p(self) -> None:
        params = self._params
        self._add(
            lib.llama_sampler_init_typical(params.typical_p, params.min_keep), _drop_weightless
        )

    def _add_top_p(self) -> None:
        params = self._params
        self._add(lib.llama_sampler_init_top_p(params.top_p, params.min_keep), _drop_ruled_out)

    def _add_min_p(self) -> None:
        params = self._params
        self._add(lib.llama_sampler_init_min_p(params.min_p, params.min_keep), _drop_ruled_out)

    def _add_xtc(self) -> None:
        params = self._params
        sampler = lib.llama_sampler_init_xtc(
            params.xtc_probability, params.xtc_threshold, params.min_keep, self._seed
        )
        self._add(sampler, _drop_ruled_out)

    def _add_infill(self) -> None:
        self._infill = self._add(self._chains.infill(), _drop_ruled_out)

    def _apply_infill(self, array: Any) -> None:
        """It takes the end where no text is likely enough, also an end that was ruled out."""
        before = _view(array).copy()
        lib.llama_sampler_apply(self._infill, ctypes.byref(array))
        if not np.isin(_view(array)["id"], before["id"]).all():
            array.size = 1
            _view(array)[:] = before[before["logit"].argmax()]

    def _add_temperature(self) -> None:
        params = self._params
        temperature = params.temperature if params.temperature > GREEDY_BELOW else 0.0
        sampler = lib.llama_sampler_init_temp_ext(
            temperature, params.dynatemp_range, params.dynatemp_exponent
        )
        self._add(sampler, _drop_ruled_out)

    def _add_draw(self) -> None:
        params, n_vocab = self._params, self._chains.n_vocab
        if params.mirostat == 1:
            sampler = lib.llama_sampler_init_mirostat(
                n_vocab, self._seed, params.mirostat_tau, params.mirostat_eta, MIROSTAT_M
            )
        elif params.mirostat == 2:
            sampler = lib.llama_sampler_init_mirostat_v2(
                self._seed, params.mirostat_tau, params.mirostat_eta
            )
        else:
            sampler = lib.llama_sampler_init_dist(self._seed)
        self._add(sampler, _drop_weightless if params.mirostat else _drop_ruled_out)

    @staticmethod
    def _feed(samplers: list[Any], token: int) -> None:
        for sampler in samplers:
            lib.llama_sampler_accept(sampler, token)


def _data(candidates: np.ndarray[Any, Any]) -> Any:
    return ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)


def _view(array: Any) -> np.ndarray[Any, Any]:
    """The candidates that are left, where they are."""
    address = ctypes.cast(array.data, ctypes.c_void_p).value
    assert address is not None, "the candidates are ours"
    buffer = (ctypes.c_char * (array.size * CANDIDATE.itemsize)).from_address(address)
    return np.frombuffer(buffer, CANDIDATE)


def _keep(array: Any, candidates: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> None:
    n_kept = int(np.count_nonzero(kept))
    if n_kept < len(candidates):
        candidates[:n_kept] = candidates[kept]
        array.size = n_kept


def _drop_ruled_out(array: Any) -> None:
    candidates = _view(array)
    _keep(array, candidates, candidates["logit"] > -np.inf)


def _drop_weightless(array: Any) -> None:
    _drop_ruled_out(array)
    if array.size:
        candidates = _view(array)
        logits = candidates["logit"]
        _keep(array, candidates, logits >= logits.max() - UNDERFLOW)
