"""What a search request may be: one check for the server, the in-process retriever and the client."""

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.retriever.retrieval_errors import QueryError, RequestError


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    max_topk: passages per query.
    max_queries: queries per request.
    max_query_characters: length of one query; encoders read the first few hundred tokens.
    max_body_bytes: length of an HTTP body.
    """

    max_topk: int = 100
    max_queries: int = 1024
    max_query_characters: int = 16_384
    max_body_bytes: int = 8 << 20


DEFAULT_LIMITS = Limits()


def check_topk(topk: object, limits: Limits) -> int:
    """`topk` as an int within the limits.

    Raises:
        RequestError: it is none.
    """
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= limits.max_topk:
        raise RequestError(f"topk must be an integer from 1 to {limits.max_topk}, got {str(topk)[:40]}")
    return topk


def check_queries(queries: object, limits: Limits) -> list[str]:
    """The queries, stripped of surrounding white space.

    Raises:
        RequestError: not a list of at most `max_queries` strings.
        QueryError: a query is empty, too long, or holds a lone surrogate.
    """
    if isinstance(queries, str) or not isinstance(queries, Sequence):
        raise RequestError(f"queries must be a list of strings, got {type(queries).__name__}")
    if len(queries) > limits.max_queries:
        raise RequestError(f"at most {limits.max_queries} queries in a request, got {len(queries)}")
    return [_check_query(query, position, limits) for position, query in enumerate(queries)]


def _check_query(query: object, position: int, limits: Limits) -> str:
    if not isinstance(query, str):
        raise RequestError(f"query {position} must be a string, got {type(query).__name__}")
    if len(query) > limits.max_query_characters:
        raise QueryError(
            f"query {position} has {len(query)} characters; at most {limits.max_query_characters} are searched for"
        )
    stripped = query.strip()
    if not stripped:
        raise QueryError(f"query {position} is empty")
    if not stripped.isascii():
        try:
            stripped.encode()
        except UnicodeEncodeError:
            raise QueryError(f"query {position} holds a lone surrogate, which is no character") from None
    return stripped
