"""Log lines: their two forms, what is left out, and that logging never hurts the one who logs."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import textwrap
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher
from twisted.python import log as old_log
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from spread.node.logs import Level, LogFormat, make_observer, masked, one_line

NOON = datetime.fromisoformat("2026-01-31T12:00:00.123+00:00").timestamp()
URL = "redis://user:s3cr3t@10.0.0.5:6379/0"


def lines(event: LogEvent, format: LogFormat = "text", level: Level = "info") -> list[str]:
    """What is written of one event that is said at noon by spread.hub on shard 0."""
    stream = io.StringIO()
    told = {"log_time": NOON, "log_namespace": "spread.hub", "log_level": LogLevel.info, **event}
    make_observer(format, level, stream, shard=lambda: 0)(told)
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return text.splitlines()


def line(event: LogEvent, format: LogFormat = "text", level: Level = "info") -> str:
    [only] = lines(event, format, level)
    return only


def record(event: LogEvent) -> dict[str, Any]:
    decoded = json.loads(line(event, "json"))
    assert isinstance(decoded, dict)
    return decoded


def failed(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


# --- the two forms ----------------------------------------------------------------------------------


def test_a_line_of_text() -> None:
    event = {"log_format": "connected to {hub}", "hub": "redis://h", "attempt": 2, "why": "it was away"}
    assert line(event) == (
        '2026-01-31T12:00:00.123Z info  shard=0 spread.hub connected to redis://h attempt=2 why="it was away"'
    )


def test_a_line_of_json() -> None:
    event = {"log_format": "connected to {hub}", "hub": "redis://h", "attempt": 2, "share": 0.5, "now": None}
    assert list(record(event).items()) == [
        ("time", "2026-01-31T12:00:00.123Z"),
        ("level", "info"),
        ("shard", 0),
        ("logger", "spread.hub"),
        ("event", "connected to redis://h"),
        ("hub", "redis://h"),
        ("attempt", 2),
        ("share", 0.5),
        ("now", None),
    ]


def test_a_shard_without_a_number() -> None:
    stream = io.StringIO()
    event = {"log_format": "hello", "log_namespace": "spread", "log_level": LogLevel.info, "log_time": NOON}
    make_observer("text", "info", stream)(event)
    make_observer("json", "info", stream)(event)
    text, decoded = stream.getvalue().splitlines()
    assert text == "2026-01-31T12:00:00.123Z info  shard=- spread hello"
    assert json.loads(decoded)["shard"] is None


def test_a_shard_that_gets_its_number_late() -> None:
    numbers = [None, 5]
    stream = io.StringIO()
    observer = make_observer("text", "info", stream, shard=lambda: numbers.pop(0))
    for _ in range(2):
        observer({"log_format": "hello", "log_namespace": "spread", "log_level": LogLevel.info})
    assert [each.split()[2] for each in stream.getvalue().splitlines()] == ["shard=-", "shard=5"]


def test_only_plain_values_are_fields() -> None:
    event = {"log_format": "x", "peer": object(), "names": ["a"], "on": True, "log_source": "y"}
    assert line(event).endswith(" x on=true")
    assert record(event).keys() == {"time", "level", "shard", "logger", "event", "on"}


def test_a_field_named_like_a_key_gets_an_underscore() -> None:
    event = {"log_format": "shard {shard} is gone", "shard": 7, "time": 1.5}
    assert line(event).endswith(" shard 7 is gone time_=1.5")
    decoded = record(event)
    assert (decoded["shard"], decoded["shard_"], decoded["time_"]) == (0, 7, 1.5)


@pytest.mark.parametrize("format", ["{a.real} {b[0]} {c()}", "{a!r} {b:>3} {c}"])
def test_what_the_text_shows_is_not_shown_again(format: str) -> None:
    event = {"log_format": format, "a": 1, "b": "x", "c": "y", "d": 2}
    assert "d=2" in line(event)
    assert not any(f" {name}=" in line(event) for name in "abc")


def test_numbers_that_json_does_not_have() -> None:
    decoded = record({"log_format": "x", "a": float("nan"), "b": float("-inf")})
    assert (decoded["a"], decoded["b"]) == ("nan", "-inf")


def test_fields_without_words() -> None:
    assert line({"clients": 3}).endswith(" spread.hub clients=3")
    assert record({"clients": 3})["event"] == ""


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_event_that_says_nothing_is_no_line(format: LogFormat) -> None:
    assert lines({}, format) == []


# --- one line, whatever is in it --------------------------------------------------------------------

EVIL = "a\nb\r\tc\x1b[31m\x85\u2028\u202e\x00\ud800"


def test_text_is_escaped() -> None:
    text = line({"log_format": "{name}", "name": EVIL, "other": EVIL})
    assert r"a\nb\r\tc\x1b[31m\x85\u2028\u202e\x00\ud800" in text
    assert text.isprintable()


def test_json_is_escaped_and_reads_back() -> None:
    text = line({"log_format": "{name}", "name": EVIL}, "json")
    assert text.isprintable()
    assert json.loads(text)["event"] == json.loads(text)["name"] == EVIL


def test_chinese_is_not_escaped() -> None:
    assert "欢迎" in line({"log_format": "欢迎"})
    assert "欢迎" in line({"log_format": "欢迎"}, "json")


@settings(deadline=None)
@given(st.text(), st.text(), st.sampled_from(["text", "json"]))
def test_any_text_is_one_line(text: str, value: str, format: LogFormat) -> None:
    written = line(
        {"log_format": "x{text}", "text": text, "value": value, "log_failure": failed(OSError(text))}, format
    )
    written.encode()
    if format == "json":
        assert json.loads(written)["value"] == masked(value)


def test_one_line_leaves_what_is_harmless() -> None:
    assert one_line("大厅 é 🎲 \\n") == "大厅 é 🎲 \\n"


def test_long_texts_are_cut() -> None:
    event = {
        "log_format": "{text}",
        "text": "x" * 100_000,
        "log_failure": failed(OSError("y" * 100_000 + "!")),
    }
    decoded = record(event)
    assert decoded["event"].endswith("x... (83616 characters more)")
    assert decoded["traceback"].startswith("(")
    assert decoded["traceback"].endswith("y!")
    assert len(line(event, "json")) < 60_000


# --- failures ---------------------------------------------------------------------------------------


def test_a_failure_in_text_is_one_line() -> None:
    text = line(
        {"log_format": "could not", "log_failure": failed(OSError("no\nway")), "log_level": LogLevel.critical}
    )
    assert text.startswith(
        "2026-01-31T12:00:00.123Z error shard=0 spread.hub could not | Traceback (most recent"
    )
    assert " |     raise error | builtins.OSError: no | way" in text


def test_a_failure_in_json_has_its_traceback() -> None:
    decoded = record({"log_format": "could not", "log_failure": failed(OSError("no way"))})
    assert decoded["event"] == "could not"
    assert decoded["traceback"].startswith("Traceback (most recent call last):\n")
    assert decoded["traceback"].endswith("builtins.OSError: no way")


def test_a_failure_without_words_says_what_it_is() -> None:
    assert record({"log_format": "", "log_failure": failed(OSError("no way"))})["event"] == "OSError: no way"


def test_an_exception_that_cannot_be_shown() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class BrokenFailure(Failure):
        def getTraceback(self, elideFrameworkCode: int = 0, detail: str = "default") -> str:
            raise RuntimeError

    assert "Broken" in record({"log_format": "", "log_failure": failed(Broken())})["event"]
    decoded = record({"log_format": "x", "log_failure": BrokenFailure(OSError())})
    assert decoded["traceback"] == "no traceback: RuntimeError"


def test_something_else_than_a_failure_is_passed_over() -> None:
    assert line({"log_format": "x", "log_failure": "no failure"}).endswith(" spread.hub x")


# --- levels and noise -------------------------------------------------------------------------------

LEVELS: list[Level] = ["debug", "info", "warn", "error"]


@pytest.mark.parametrize("least", LEVELS)
def test_what_is_below_the_level_is_left_out(least: Level) -> None:
    shown = [
        name
        for name in LEVELS
        if lines({"log_format": "x", "log_level": LogLevel.levelWithName(name)}, level=least)
    ]
    assert shown == LEVELS[LEVELS.index(least) :]


@pytest.mark.parametrize("least", LEVELS)
def test_an_unhandled_error_always_shows_as_error(least: Level) -> None:
    for namespace in ["spread.hub", "twisted.internet.defer", "log_legacy"]:
        event = {
            "log_format": "Unhandled",
            "log_failure": failed(OSError()),
            "log_level": LogLevel.critical,
            "log_namespace": namespace,
        }
        assert " error shard=0 " in line(event, level=least)


def test_a_failure_that_is_logged_at_a_level_stays_there() -> None:
    assert " warn  " in line(
        {"log_format": "x", "log_failure": failed(OSError()), "log_level": LogLevel.warn}
    )


def test_without_a_level_an_event_is_info_and_a_failure_error() -> None:
    assert " info  " in line({"log_format": "x", "log_level": None})
    assert " error " in line({"log_format": "x", "log_level": None, "log_failure": failed(OSError())})


@pytest.mark.parametrize("namespace", ["twisted", "twisted.internet.tcp", "log_legacy", "-"])
def test_chatter_of_the_framework_shows_from_warn_up(namespace: str) -> None:
    event = {"log_format": "Starting factory", "log_namespace": namespace}
    assert lines(event) == []
    assert lines({**event, "log_level": LogLevel.debug}) == []
    assert len(lines(event, level="debug")) == 1
    assert len(lines({**event, "log_level": LogLevel.warn})) == 1


def test_a_name_that_only_begins_alike_is_no_chatter() -> None:
    assert len(lines({"log_format": "x", "log_namespace": "twistedgame"})) == 1


def test_old_style_events() -> None:
    stream = io.StringIO()
    publisher = LogPublisher(make_observer("text", "debug", stream))
    old = old_log.LogPublisher(observerPublisher=publisher, publishPublisher=publisher)
    old.msg("hello", "world", system="web")
    [text] = stream.getvalue().splitlines()
    assert text.endswith("shard=- web hello world")
    assert " info " in text


# --- passwords --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["text", "json"])
def test_passwords_are_masked_everywhere(format: LogFormat) -> None:
    event = {
        "log_format": "connecting to {hub}",
        "hub": URL,
        "other": URL,
        "log_failure": failed(OSError(f"no route to {URL}")),
    }
    text = line(event, format)
    assert "s3cr3t" not in text
    assert text.count("redis://user:***@10.0.0.5:6379/0") == (4 if format == "json" else 3)


def test_a_password_at_the_cut_is_masked() -> None:
    text = "x" * (16384 - len("redis://user:s3cr3t")) + URL
    decoded = record(
        {"log_format": "{text}", "text": text, "log_failure": failed(OSError(text + "y" * 16300))}
    )
    assert "s3cr3t" not in json.dumps(decoded)


def test_a_password_in_a_broken_format_is_masked() -> None:
    assert "s3cr3t" not in line({"log_format": "{nothing}", "hub": URL})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@h", "redis://:***@h"),
        ("a rediss://u:p@w/d@h:1/0, b", "a rediss://u:***@h:1/0, b"),
        ("x://u:p@h y://v:q@i", "x://u:***@h y://v:***@i"),
        ("http://h:80/x me@example", "http://h:80/x me@example"),
        ("redis://user@h", "redis://user@h"),
        ("me@example: hello", "me@example: hello"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


# --- logging never raises ---------------------------------------------------------------------------


class Evil:
    def __str__(self) -> str:
        raise RuntimeError("evil")

    __repr__ = __format__ = __str__  # type: ignore[assignment]


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"log_format": "{nothing}"}, "Unable to format event"),
        ({"log_format": "{"}, "Unable to format event"),
        ({"log_format": 7}, "Unable to format event"),
        ({"log_format": b"bytes"}, "bytes"),
        ({"log_format": "{evil}", "evil": Evil()}, "MESSAGE LOST"),
        ({"log_format": "x", "log_namespace": Evil()}, "an event could not be logged: RuntimeError"),
        ({"log_format": "x", "log_level": "info"}, "an event could not be logged: AttributeError"),
        ({"log_format": "x", "log_time": None}, " x"),
        ({"log_format": "x", "log_time": 1e300}, " x"),
    ],
)
def test_a_broken_event_is_logged_as_such(event: LogEvent, says: str, format: LogFormat) -> None:
    assert says.strip() in line(event, format)


def test_a_shard_that_cannot_be_told_is_logged_as_such() -> None:
    stream = io.StringIO()
    observer = make_observer("text", "info", stream, shard=lambda: 1 // 0)
    observer({"log_format": "x", "log_namespace": "spread", "log_level": LogLevel.info})
    assert (
        "error shard=- spread.node.logs an event could not be logged: ZeroDivisionError" in stream.getvalue()
    )


def test_a_closed_stream_drops_lines() -> None:
    stream = io.StringIO()
    observer = make_observer("text", "info", stream)
    stream.close()
    observer({"log_format": "x", "log_namespace": "spread", "log_level": LogLevel.info})
    observer({"log_format": "x", "log_namespace": "spread", "log_level": LogLevel.debug})
    assert observer.dropped == 1


def test_a_closed_pipe_drops_lines() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[arg-type]
        observer = make_observer("json", "info", stream)
        for _ in range(2):
            observer({"log_format": "x", "log_namespace": "spread", "log_level": LogLevel.info})
        assert observer.dropped == 2
        stream.detach()


class FullDisk(io.StringIO):
    """A stream that has no room while ``full``."""

    full = True

    def write(self, text: str, /) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_a_full_disk_drops_lines_until_there_is_room() -> None:
    stream = FullDisk()
    log = Logger("spread", observer=make_observer("text", "info", stream))
    log.info("lost")
    stream.full = False
    log.info("kept")
    assert stream.getvalue().endswith("spread kept\n")
    assert len(stream.getvalue().splitlines()) == 1


def test_what_a_stream_cannot_encode_is_dropped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    observer = make_observer("text", "info", stream)
    observer({"log_format": "欢迎", "log_namespace": "spread", "log_level": LogLevel.info})
    assert observer.dropped == 1


def test_it_is_an_observer() -> None:
    assert verifyObject(ILogObserver, make_observer("text", "info", io.StringIO()))


# --- a process --------------------------------------------------------------------------------------


def process(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_start_logging_takes_over_all_events_of_a_process() -> None:
    ran = process(
        """
        import sys, warnings
        from twisted.internet.defer import fail
        from twisted.logger import Logger
        from twisted.python import log as old

        log = Logger("spread.game")
        log.info("before")

        from spread.node.logs import start_logging
        observer = start_logging("json", "info", sys.stderr, shard=lambda: 4)

        log.debug("not this")
        old.msg("nor this")
        log.info("during {word}", word="\\u6b22\\u8fce")
        warnings.warn("careful")
        fail(OSError("nobody cares"))
        old.err(OSError("old"), "oh")
        print("stdout is left alone")
        print("stderr, too", file=sys.stderr)
        assert observer.dropped == 0
        """
    )
    assert ran.stdout == "stdout is left alone\n"
    *said, last = ran.stderr.splitlines()
    assert last == "stderr, too"
    records = [json.loads(each) for each in said]
    assert {each["shard"] for each in records} == {4}
    assert [(each["level"], each["logger"]) for each in records] == [
        ("info", "spread.game"),
        ("info", "spread.game"),
        ("warn", "twisted.logger._global"),
        ("error", "twisted.internet.defer"),
        ("error", "twisted.internet.defer"),
        ("error", "-"),
    ]
    events = [each["event"] for each in records]
    assert events[:2] == ["before", "during 欢迎"]
    assert events[2].endswith("UserWarning: careful")
    assert events[3:5] == ["Unhandled error in Deferred:", "OSError: nobody cares"]
    assert records[4]["traceback"].endswith("builtins.OSError: nobody cares")
    assert events[5].startswith("oh\nTraceback ") and events[5].endswith("OSError: old")
