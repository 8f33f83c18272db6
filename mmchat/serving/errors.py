"""Refusals in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        code: A word for programs, for example `invalid_api_key`.
        param: The parameter at fault, as a path: `messages[0].content`.
        retry_after: Seconds after which the caller may try again.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def type(self) -> str:
        """OpenAI's class of errors."""
        if self.status == 429:
            return RATE_LIMIT
        return INVALID_REQUEST if self.status < 500 else SERVER_ERROR

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, if it is known."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after + 0.5)))}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be answered as it is: status 400."""
    return ApiError(400, message, code, param)


def path_of(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` -> `messages[0].content`."""
    path = ""
    for one in location:
        path += f"[{one}]" if isinstance(one, int) else f".{one}" if path else one
    return path
