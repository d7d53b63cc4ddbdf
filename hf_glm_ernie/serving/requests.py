"""What a request may hold, and errors that say so.

The host answers a value of a wrong kind, two kinds of mask in a text or a missing field with `500 Internal Server
Error`; in a stream, with status 200 and an error in place of the answer. Here what can be known before generation is a
400 with the reason, as its own `detail`.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

# Setting -> (what it must be, in words; the lowest and the highest value; whether it is a whole number).
NUMBERS: dict[str, tuple[str, float, float, bool]] = {
    "max_tokens": ("a whole number from 1 on", 1, float("inf"), True),
    "max_completion_tokens": ("a whole number from 1 on", 1, float("inf"), True),
    "max_output_tokens": ("a whole number from 1 on", 1, float("inf"), True),
    "seed": ("a whole number from 0 on", 0, 2**63, True),
    "temperature": ("a number from 0 (greedy) on", 0, float("inf"), False),
    "top_p": ("a number above 0, at most 1", 1e-9, 1, False),
    "frequency_penalty": ("a number above -1", -1 + 1e-9, float("inf"), False),
}


def check_body(body: Mapping[str, Any]) -> None:
    """Refuses a request whose fields the host would stumble over.

    Args:
        body: The request's JSON, of any of the three ways to ask.

    Raises:
        ValueError: which field, its value, and what it must be.
    """
    for name, (words, lowest, highest, whole) in NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not lowest <= value <= highest:
            raise ValueError(f"{name}={value!r} must be {words}.")
    stop = body.get("stop")
    if stop is not None and not (stop and all(isinstance(text, str) and text for text in _as_list(stop))):
        raise ValueError(f"stop={stop!r} must be a text, or a list of texts, none of them empty.")
    if "messages" in body:
        _check_messages(body["messages"])


def check_asked(body: Mapping[str, Any], field: str) -> None:
    """Refuses a request that asks nothing.

    Args:
        body: The request's JSON.
        field: Where the question stands: `prompt`, `messages` or `input`.

    Raises:
        ValueError: it is missing, or empty where it must not be.
    """
    if body.get(field) in (None, [], {}):
        raise ValueError(f"The request has no {field!r}, or an empty one: it asks nothing.")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise ValueError(f"messages is a {type(messages).__name__}; it must be a list of messages.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{index}] must be an object with 'role' and 'content'.")
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"messages[{index}] has a part that is no text; GLM-130B reads text only.")
        if not isinstance(content, str | list):
            raise ValueError(f"The content of messages[{index}] is a {type(content).__name__}; it must be a text.")


def _as_list(stop: Any) -> list[Any]:
    return stop if isinstance(stop, list) else [stop]


class CheckedHandler:
    """A handler of the host, whose bad requests are answered with 400 and the reason.

    Args:
        handler: The host's, with `handle_request(body, request_id)`.
        field: Where its question stands in the body.
    """

    def __init__(self, handler: Any, field: str):
        self._handler, self._field = handler, field

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """As in the host.

        Args:
            body: The request's JSON.
            request_id: As in the host.

        Returns:
            As in the host: a JSON response or a stream.

        Raises:
            HTTPException: 400, for what the request asks and cannot have.
        """
        from fastapi import HTTPException  # of the host's extra

        try:
            check_asked(body, self._field)
            check_body(body)
            return await self._handler.handle_request(body, request_id)
        except (ValueError, TypeError, TemplateError) as error:
            raise HTTPException(status_code=400, detail=str(error)) from error


__all__ = ["CheckedHandler", "check_asked", "check_body"]
