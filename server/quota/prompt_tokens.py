"""How many tokens a prompt has, before the engine sees it: with the engine's own tokenizer, chat template included.

The count is exact for texts, token ids and plain chats. It is an estimate for images, for bodies that the template does
not take as they are, and where there is no tokenizer here (remote engines). Settlement mends what was estimated.
It never fails a request: what it cannot read, vLLM words the complaint about.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from thriftree.server.quota.prompt_bound import bytes_bound
from thriftree.server.quota.prompt_text import Prompt, prompt_of

logger = logging.getLogger("thriftree.server")

#: ``await count(route, body)``: tokens of the prompt.
PromptCounter = Callable[[str, dict[str, Any]], Awaitable[int]]

_CHAT = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
_IN_LOOP = 4000  # characters that may be counted on the event loop: 1.6 ms; more go to a thread
_BOUNDED = 50_000  # characters of a prompt that may be rendered on the event loop, to know its bytes
_COUNTED = 2_000_000  # characters, a second's work; longer ones are estimated: no engine takes them
_PIECE = 50_000  # characters encoded at once: what an encoding holds is freed under the interpreter's lock
_OF_MESSAGE = 40  # characters that a message counts for there, however short it is
_VALUES = 1000  # of a body, read on the event loop; in a thread there is no such bound
_PER_MEDIUM = 256  # tokens
_PER_MESSAGE = 5  # tokens of a chat template around a message, where it cannot be rendered
_CHARACTERS = 4  # of a token, where there is no tokenizer
#: What a request may tell the template here. Not `chat_template`: a stranger's template runs in vLLM or not at all.
_TEMPLATE_FLAGS = ("enable_thinking", "thinking", "reasoning_effort")


async def rough(route: str, body: dict[str, Any]) -> int:
    """Without a tokenizer."""
    prompt = prompt_of(body, _VALUES)
    return _estimate(await asyncio.to_thread(prompt_of, body) if prompt.cut else prompt)


class TokenizerCounter:
    """A `PromptCounter` on a tokenizer of Hugging Face; `template`: the chat template, if not the tokenizer's own."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._length, self._around = _length_of(tokenizer)

    async def __call__(self, route: str, body: dict[str, Any]) -> int:
        prompt = prompt_of(body, _VALUES)
        if prompt.cut or prompt.characters + prompt.messages * _OF_MESSAGE > _IN_LOOP:
            return await asyncio.to_thread(self._count, route, body, None)
        return self._count(route, body, prompt)

    def bound(self, route: str, body: dict[str, Any]) -> int | None:
        """What ``await self(route, body)`` cannot exceed, uncounted; None: nothing is proven, or it takes long."""
        if self._around is None:
            return None
        prompt = prompt_of(body, _VALUES)
        if prompt.cut or prompt.media or prompt.characters + prompt.messages * _OF_MESSAGE > _BOUNDED:
            return None
        try:
            if _is_chat(route, body):
                rendered = self._render(chat_of(body), body)
                return None if rendered is None else _bytes(rendered)
            return sum(_bytes(text) + self._around for text in prompt.texts) + prompt.ids + _extras(prompt)
        except ValueError:  # a lone surrogate
            return None

    def _count(self, route: str, body: dict[str, Any], prompt: Prompt | None) -> int:
        prompt = prompt or prompt_of(body)
        if prompt.characters > _COUNTED:
            return _estimate(prompt)
        try:
            chat = _is_chat(route, body)
            rendered = self._render(chat_of(body), body) if chat else None
            if rendered is not None:
                return self._length(rendered, False) + prompt.media * _PER_MEDIUM
            return sum(self._length(text, not chat) for text in prompt.texts) + prompt.ids + _extras(prompt)
        except Exception as error:  # of somebody else's tokenizer
            logger.debug("a prompt was estimated, not counted: %r", error)
            return _estimate(prompt)

    def _render(self, messages: list[dict[str, Any]] | None, body: dict[str, Any]) -> str | None:
        """The chat as text; None where the template does not take it. Costs a tenth of what its tokens cost."""
        if messages is None:
            return None
        kwargs = body.get("chat_template_kwargs")
        last = body.get("continue_final_message") is True
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tools=body.get("tools") or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=not last and body.get("add_generation_prompt", True) is True,
                continue_final_message=last,
                **{k: v for k, v in kwargs.items() if k in _TEMPLATE_FLAGS} if isinstance(kwargs, dict) else {},
            )
        except Exception as error:  # templates refuse what they like, with what they like
            logger.debug("a chat was counted without its template: %r", error)
            return None
        return rendered if isinstance(rendered, str) else None


def chat_of(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of a chat, a Responses or an Anthropic body with plain text contents; None: there are none."""
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        return None
    head = [body[name] for name in ("system", "instructions") if body.get(name)]
    chat = [{"role": "system", "content": text} for text in head] + messages
    if not all(isinstance(message, dict) and "role" in message for message in chat):
        return None
    return [{**message, "content": _text(message.get("content"))} for message in chat]


def _text(content: Any) -> Any:
    """Text parts on lines of their own, as vLLM gives them to templates that take text."""
    if not isinstance(content, list):
        return content or ""
    parts = (part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict))
    return "\n".join(part for part in parts if isinstance(part, str))


def _is_chat(route: str, body: dict[str, Any]) -> bool:
    return route in _CHAT or "messages" in body


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _estimate(prompt: Prompt) -> int:
    return prompt.ids + prompt.characters // _CHARACTERS + _extras(prompt)


def _extras(prompt: Prompt) -> int:
    return prompt.messages * _PER_MESSAGE + prompt.media * _PER_MEDIUM


def _length_of(tokenizer: Any) -> tuple[Callable[[str, bool], int], int | None]:
    """``length(text, special)``: tokens of a text, with or without the special tokens around it.

    And the number of those, where a text has no more tokens than bytes and these; else None.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text, special: len(tokenizer.encode(text, add_special_tokens=special)), None
    # A copy: the engine sets truncation on its own, and one that is being read in a thread refuses that.
    spec = backend.to_str()
    own = type(backend).from_str(spec)
    own.no_truncation()
    own.no_padding()

    def length(text: str, special: bool) -> int:
        if len(text) <= _PIECE:
            return len(own.encode_batch_fast([text], add_special_tokens=special)[0])
        return sum(length(piece, special and i == 0) for i, piece in enumerate(_pieces(text)))

    return length, own.num_special_tokens_to_add(False) if bytes_bound(json.loads(spec)) else None


def _pieces(text: str) -> Iterator[str]:
    """Cut before a space where there is one, as most tokenizers do too: so the sum is the whole, or a token off."""
    start = 0
    while len(text) - start > _PIECE:
        space = text.rfind(" ", start + 1, start + _PIECE)
        cut = space if space > 0 else start + _PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]
