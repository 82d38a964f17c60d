"""Log lines: one line an event, on one stream, in text or JSON. An observer for ``twisted.logger``.

    2026-01-31T12:00:00.123Z info  shard=0 spread.hub.redis connected to redis://10.0.0.5 attempt=2
    {"time":"2026-01-31T12:00:00.123Z","level":"info","shard":0,"logger":"spread.hub.redis","event":...}

Promises:

1.  An event is one line, whatever is in it. Text escapes line ends and other control characters; a
    traceback becomes one line, its lines joined by `` | ``.
2.  Logging never raises. An event that cannot be formatted is logged as such; a line that cannot be
    written (closed pipe, full disk) is counted in ``dropped``, and gone.
3.  Passwords in URLs are masked in everything that is written.
4.  What an event may cost is bounded: texts and tracebacks above 16 384 characters are cut.

The levels are those of the setting: debug, info, warn, error (Twisted's ``critical``, which is what
unhandled errors come as, is shown as error). What Twisted itself and old-style ``log.msg`` callers say at
info is shown only when the level is debug.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from string import Formatter
from typing import Literal, TextIO, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Level", "LogFormat", "LogObserver", "make_observer", "masked", "one_line", "start_logging"]

Level = Literal["debug", "info", "warn", "error"]
LogFormat = Literal["text", "json"]
Simple = str | int | float | bool | None

_SEVERITY: dict[Level, int] = {"debug": 0, "info": 1, "warn": 2, "error": 3}
_LEVELS: dict[str, Level] = {
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "error": "error",
    "critical": "error",
}
_TEXT_MAX_CHARACTERS = 16384
_KEYS = frozenset({"time", "level", "shard", "logger", "event", "traceback"})

_CREDENTIALS = re.compile(r"://([^\s:/@]*):(\S*)")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what some readers take for a line end, what turns text around, lone surrogates."""
_UNSAFE_JSON = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What of that ``json.dumps`` leaves as it is. It can only be inside of strings."""
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


def masked(text: str) -> str:
    """The text with the passwords of its URLs replaced: ``://user:***@``.

    Takes the last ``@`` of a word as the end of the password: rather too much is hidden than too little.
    """
    return _CREDENTIALS.sub(_without_password, text) if "://" in text else text


def _without_password(found: re.Match[str]) -> str:
    # Looking for the "@" here and not in the pattern keeps the time linear for any text.
    _, at, rest = found[2].rpartition("@")
    return f"://{found[1]}:***@{rest}" if at else found[0]


def one_line(text: str) -> str:
    """The text with everything escaped that could end a line or steer a terminal."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _no_shard() -> int | None:
    return None


def make_observer(
    format: LogFormat, level: Level, stream: TextIO, *, shard: Callable[[], int | None] = _no_shard
) -> LogObserver:
    """An observer that writes to ``stream`` what is at least of ``level``.

    :param shard: asked for each line; ``None`` while there is no number yet.
    """
    return LogObserver(_json_line if format == "json" else _text_line, level, stream, shard)


def start_logging(
    format: LogFormat, level: Level, stream: TextIO, *, shard: Callable[[], int | None] = _no_shard
) -> LogObserver:
    """Send all events of this process to ``stream``, warnings and what was logged so far included.

    To be called once. Standard output and error are left as they are.
    """
    observer = make_observer(format, level, stream, shard=shard)
    globalLogBeginner.beginLoggingTo([cast(ILogObserver, observer)], redirectStandardIO=False)
    return observer


@implementer(ILogObserver)
class LogObserver:
    """Writes events as lines; see the module for what is promised."""

    def __init__(
        self,
        line: Callable[[LogEvent, int | None], str],
        level: Level,
        stream: TextIO,
        shard: Callable[[], int | None],
    ) -> None:
        self._line = line
        self._severity = _SEVERITY[level]
        self._stream = stream
        self._shard = shard
        self.dropped = 0
        """Lines that could not be written."""

    def __call__(self, event: LogEvent) -> None:
        """Take an event. Called by Twisted's log publisher, on any thread."""
        try:
            if not self._wants(event):
                return
            line = self._line(event, self._shard())
        except Exception as error:
            # Whatever is wrong with an event must not reach the code that only wanted to log it.
            line = _broken_line(self._line, error)
        if not line:
            return
        try:
            # One write for the whole line: processes of a fleet share the stream.
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: closed, or a character the stream cannot encode
            self.dropped += 1

    def _wants(self, event: LogEvent) -> bool:
        severity = _SEVERITY[_level(event)]
        if self._severity == 0:
            return True
        return severity >= self._severity and (severity > 1 or not _is_foreign(event))


def _level(event: LogEvent) -> Level:
    level = event.get("log_level")
    if level is None:
        return "error" if "log_failure" in event else "info"
    return _LEVELS[level.name]


def _is_foreign(event: LogEvent) -> bool:
    """Said by Twisted, or through its old ``log.msg``."""
    namespace = str(event.get("log_namespace", "-"))
    return namespace in ("-", "log_legacy", "twisted") or namespace.startswith("twisted.")


def _logger(event: LogEvent) -> str:
    namespace = str(event.get("log_namespace", "-"))
    return str(event.get("log_system", "-")) if namespace == "log_legacy" else namespace


def _time(event: LogEvent) -> str:
    """ISO 8601 in UTC with milliseconds."""
    try:
        when = datetime.fromtimestamp(event["log_time"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        when = datetime.fromtimestamp(time.time(), UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(event: LogEvent) -> str:
    """What the event says; of a failure that comes without words, the message of its exception."""
    text = formatEvent(event).strip()
    if not text and isinstance(failure := event.get("log_failure"), Failure):
        text = f"{_type_name(failure)}: {failure.getErrorMessage()}"
    text = masked(text)  # before the cut: half a URL is not recognised
    if len(text) > _TEXT_MAX_CHARACTERS:
        text = f"{text[:_TEXT_MAX_CHARACTERS]}... ({len(text) - _TEXT_MAX_CHARACTERS} characters more)"
    return text


def _type_name(failure: Failure) -> str:
    return failure.type.__name__ if failure.type is not None else "Failure"


def _traceback(event: LogEvent) -> str | None:
    """Of a long one the end, where it says what happened."""
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return None
    try:
        text = masked(failure.getTraceback().strip())
    except Exception as error:  # the exception's own __str__ may be broken
        return f"no traceback: {type(error).__name__}"
    if len(text) > _TEXT_MAX_CHARACTERS:
        cut = len(text) - _TEXT_MAX_CHARACTERS
        text = f"({cut} characters before) ...{text[-_TEXT_MAX_CHARACTERS:]}"
    return text


def _fields(event: LogEvent) -> dict[str, Simple]:
    """The event's own keyword arguments, as far as they are plain values.

    One that bears the name of a key of every line gets an underscore behind it.
    """
    fields: dict[str, Simple] = {}
    if _is_foreign(event):  # old-style events carry keys of their publisher
        return fields
    for key, value in event.items():
        if key.startswith("log_"):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no such numbers
        if isinstance(value, str):
            value = masked(str(value))[:_TEXT_MAX_CHARACTERS]
        if value is None or type(value) in (str, int, float, bool):
            fields[f"{key}_" if key in _KEYS else key] = value
    return fields


@lru_cache(maxsize=512)
def _names(format: str) -> frozenset[str]:
    """The fields that a format string already shows."""
    try:
        parsed = [name for _, name, _, _ in Formatter().parse(format) if name]
    except ValueError:
        return frozenset()
    return frozenset(re.split(r"[.\[(]", name, maxsplit=1)[0] for name in parsed)


def _text_line(event: LogEvent, shard: int | None) -> str:
    format = event.get("log_format")
    shown = _names(format) if isinstance(format, str) else frozenset[str]()
    words = [_text(event)]
    for key, value in _fields(event).items():
        if key.removesuffix("_") not in shown and key not in shown:
            words.append(f"{key}={_text_value(value)}")
    if traceback := _traceback(event):
        words.append("| " + traceback.replace("\n", " | "))
    said = " ".join(word for word in words if word)
    if not said:
        return ""
    where = "-" if shard is None else str(shard)
    return one_line(f"{_time(event)} {_level(event):<5} shard={where} {_logger(event)} {said}")


def _text_value(value: Simple) -> str:
    if isinstance(value, str) and not _PLAIN_VALUE.fullmatch(value):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if not isinstance(value, str) else value


def _json_line(event: LogEvent, shard: int | None) -> str:
    text, traceback, fields = _text(event), _traceback(event), _fields(event)
    if not (text or traceback or fields):
        return ""
    line: dict[str, Simple] = {
        "time": _time(event),
        "level": _level(event),
        "shard": shard,
        "logger": _logger(event),
        "event": text,
        **fields,
    }
    if traceback:
        line["traceback"] = traceback
    dumped = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", dumped)


def _broken_line(line: Callable[[LogEvent, int | None], str], error: Exception) -> str:
    """A line about an event that could not be made into one, built from nothing of it."""
    about: LogEvent = {
        "log_namespace": __name__,
        "log_level": LogLevel.error,
        "log_format": "an event could not be logged: {error}",
        "error": type(error).__name__,
    }
    return line(about, None)
