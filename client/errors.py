"""What a client of the Centrifuge protocol fails with.

ClientError
├── Refused           the server said no
├── TimedOut          no answer in time; whether it was done is not known
├── ConnectionEnded   the connection broke before the answer; not known either
├── NotConnected      there is no connection and none is being made
├── NotSubscribed     the subscription is, or became, unsubscribed
├── TransportFailed   no connection could be made
├── TokenFailed       the application's function for tokens failed
├── BadServer         the server does not keep to the protocol
└── TooMany           too much waits to be sent or answered

Unauthorized          raised by the application's function for tokens: there is none, do not try again
"""

from __future__ import annotations

from spread.client.codes import ErrorCode

__all__ = [
    "BadServer",
    "ClientError",
    "ConnectionEnded",
    "NotConnected",
    "NotSubscribed",
    "Refused",
    "TimedOut",
    "TokenFailed",
    "TooMany",
    "TransportFailed",
    "Unauthorized",
]


class ClientError(Exception):
    """Any failure of a client; ``code`` is the server's from 100 on, and else one of ``ErrorCode``."""

    code: int = 0

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.text} ({self.code})"


class Refused(ClientError):
    """The server answered with an error."""

    def __init__(self, code: int, text: str, temporary: bool = False) -> None:
        super().__init__(text, code)
        self.temporary = temporary
        """The same may succeed later."""


class TimedOut(ClientError):
    """No answer came in time."""

    code = ErrorCode.TIMEOUT


class ConnectionEnded(ClientError):
    """The connection ended before the answer came."""

    code = ErrorCode.CONNECTION_CLOSED


class NotConnected(ClientError):
    """The client is disconnected; ``code`` and text say why if a server or a token made it so."""

    code = ErrorCode.CLIENT_DISCONNECTED


class NotSubscribed(ClientError):
    """The subscription is not, or no longer, there; ``code`` and text say why if the server ended it."""

    code = ErrorCode.UNSUBSCRIBED


class TransportFailed(ClientError):
    """A connection could not be made."""

    code = ErrorCode.TRANSPORT_CLOSED


class TokenFailed(ClientError):
    """The application's function for tokens failed; the cause is ``__cause__``."""

    def __init__(self, code: int, cause: BaseException) -> None:
        super().__init__(f"no token: {cause!r}", code)
        self.__cause__ = cause


class BadServer(ClientError):
    """What the server sent is not of the protocol."""

    code = ErrorCode.BAD_PROTOCOL


class TooMany(ClientError):
    """A bound was reached; nothing was sent."""

    code = ErrorCode.TOO_MANY


class Unauthorized(Exception):
    """For functions that give tokens: the user may not connect, or not subscribe. Final."""
