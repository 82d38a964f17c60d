"""What a person at a command line can do about a refusal."""

from __future__ import annotations

from spread.client.errors import ClientError

__all__ = ["advice_for", "refusal"]

_NEED_TOKEN = "give a token with --token or SPREAD_TOKEN; `spread token --user NAME` makes one"

ADVICE: dict[int, str] = {
    1: "the token has expired or there is none; make a new one with `spread token --user NAME`",
    101: _NEED_TOKEN,
    102: "the namespace, the part before the first colon, is not configured on the server",
    103: "the server's options of the namespace do not allow it to clients, and the token does not either",
    105: "the token or the server has subscribed this connection already",
    106: "this connection has as many channels as the server allows",
    107: "the name of the channel or the data is not what the server takes",
    108: "it is switched off in the server's options of the namespace",
    109: "make a new token with `spread token --user NAME`",
    112: "the server keeps no history that far back; leave out --since, or use --since all",
    3500: "the token is signed with another secret, or is for another channel or user",
    3501: f"the server does not let in clients without a token: {_NEED_TOKEN}",
    3503: "the server's API has disconnected this user",
    3504: "this user has as many connections as the server allows",
    3505: "the token subscribes to more channels than the server allows",
    3507: "the server wants a token with a user in it: `spread token --user NAME`",
}
"""By the code of the client or the server."""

HTTP_ADVICE = {
    401: "give the key of the server API with --key or SPREAD_API_KEY",
    403: "the server wants another Origin or address",
    404: "the path is not there; check the URL",
}


def advice_for(code: int) -> str:
    """A clause that says what to do; "" where there is nothing to say."""
    return ADVICE.get(code, "")


def refusal(what: str, text: str, code: int) -> str:
    """One line: what could not be done, why, and what to do."""
    advice = advice_for(code)
    return f"{what}: {text} ({code}){f'; {advice}' if advice else ''}"


def failure(what: str, error: BaseException | None) -> str:
    """As ``refusal``, for what a call failed with."""
    if isinstance(error, ClientError):
        return refusal(what, error.text, error.code)
    return f"{what}: {error}"
