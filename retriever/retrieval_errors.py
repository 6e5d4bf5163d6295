"""What can go wrong in retrieval, by who can repair it."""


class RetrieverError(Exception):
    """Base of every error of this package."""


class CorpusError(RetrieverError, ValueError):
    """A corpus file is missing or a line of it is not a passage; the message names the line."""


class IndexFolderError(RetrieverError, ValueError):
    """An index folder is incomplete, damaged, or its parts belong to different corpora."""


class RequestError(RetrieverError, ValueError):
    """A request that no retry can help: wrong fields, topk out of range, a wrong address.

    `code` and `status` are what a server answers with.
    """

    code, status = "bad_request", 422


class MalformedBodyError(RequestError):
    """The body of a request is not JSON, or too long."""

    code, status = "malformed_body", 400


class QueryError(RequestError):
    """The text of a query is refused: empty, too long, or not valid Unicode. What the asker wrote is at fault."""

    code = "bad_query"


class OverloadedError(RetrieverError):
    """The queue is full; ask again after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the retriever's queue is full; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class RetrieverUnavailable(RetrieverError):
    """The retriever did not give an answer within the stated patience.

    `fatal` tells a training loop to stop with this message: an outage never becomes an observation.
    """

    fatal = True
