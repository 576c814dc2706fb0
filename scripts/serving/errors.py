"""Errors as an OpenAI client expects them: a status and `{"error": {"message", "type", "param", "code"}}`."""

import json
from typing import Any

from starlette.responses import Response

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


_MAX_MESSAGE, _MAX_PARAM = 1000, 200  # characters; both may quote the request


class ApiError(Exception):
    """An error response. `param` is the path of the invalid parameter, `retry_after` (seconds) becomes Retry-After."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message[:_MAX_MESSAGE])
        self.status, self.code, self.retry_after = status, code, retry_after
        self.param = None if param is None else param[:_MAX_PARAM]

    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as a response."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else None
        # Half of a character, cut off or sent so, would not be UTF-8.
        body = json.dumps(self.body())
        return Response(body, self.status, headers=headers, media_type="application/json")
