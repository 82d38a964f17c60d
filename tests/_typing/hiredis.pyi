# The part of hiredis that spread.hub.link uses.
from collections.abc import Callable
from typing import Any

class Reader:
    def __init__(
        self,
        protocolError: Callable[[str], Exception] = ...,
        replyError: Callable[[str], Exception] = ...,
    ) -> None: ...
    def feed(self, data: bytes) -> None: ...
    def gets(self) -> Any: ...

def pack_command(command: tuple[bytes | str | int | float, ...]) -> bytes: ...
