"""The prompts of a text completion: their tokens, and their text as it is echoed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openai_local.api.errors import RequestError
from openai_local.api.generation import off_loop, tokenize_all
from openai_local.api.types.completions import CompletionRequest
from openai_local.engine.backend import Vocabulary
from openai_local.models.loads import LoadedModel

# The specification's default prompt, in models that have such a token.
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text`` is "" where nobody asked for it."""

    tokens: Sequence[int]
    text: str


async def read_prompts(body: CompletionRequest, model: LoadedModel) -> list[Prompt]:
    """Raises RequestError, and what Engine.tokenize and Engine.check_prompt raise."""
    engine = model.engine
    given = [_beginning(model)] if body.prompt is None else body.prompt
    # The caller writes the whole prompt, control tokens included, but for those around a suffix.
    whole = not body.suffix
    prompts = await tokenize_all(engine, given, parse_special=whole, add_special=whole)
    texts = [""] * len(prompts)
    if isinstance(given, str):
        texts = [given]
    elif isinstance(given[0], str):
        texts = [text for text in given if isinstance(text, str)]
    elif body.echo or body.n_logprobs() is not None:
        for tokens in prompts:
            engine.check_prompt(tokens)  # before the vocabulary is asked for them
        texts = [text_of(tokens, engine.vocabulary) for tokens in prompts]
    if body.suffix:
        prompts = await _around(body.suffix, prompts, model)
    return [Prompt(tokens, text) for tokens, text in zip(prompts, texts, strict=True)]


def text_of(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """Control tokens as they are written."""
    pieces = (vocabulary.name(t).encode() or vocabulary.piece(t) for t in tokens)
    return b"".join(pieces).decode("utf-8", "replace")


def _beginning(model: LoadedModel) -> int:
    """The token with which the model's texts begin."""
    vocabulary, info = model.engine.vocabulary, model.info
    bos = vocabulary.bos()
    if bos is not None:
        return bos
    for name in (END_OF_TEXT, info.bos_token, info.eos_token):
        if name in vocabulary.control_tokens:
            return vocabulary.tokenize(name, add_special=False, parse_special=True)[0]
    raise RequestError(
        "The model has no token with which a text begins: 'prompt' is needed.",
        param="prompt",
        code="missing_required_parameter",
    )


async def _around(
    suffix: str, prefixes: Sequence[Sequence[int]], model: LoadedModel
) -> list[Sequence[int]]:
    """What asks for the middle, as llama-server's /infill does."""
    vocabulary = model.engine.vocabulary
    marks = vocabulary.fill_in_the_middle()
    if marks is None:
        raise RequestError(
            f"The model {model.id!r} has no tokens to fill in the middle of a text.",
            param="suffix",
            code="unsupported_model",
        )
    before, after, between = marks
    end = await off_loop(
        len(suffix), lambda: vocabulary.tokenize(suffix, add_special=False, parse_special=False)
    )
    bos = vocabulary.bos()
    start = [before] if bos is None else [bos, before]
    return [[*start, *prefix, after, *end, between] for prefix in prefixes]
