"""What can go wrong: one tree, facts as attributes, and a sentence of each."""

from __future__ import annotations

import pytest

from spread.hub import errors
from spread.hub.errors import (
    Fenced,
    HubError,
    HubMisconfigured,
    HubRefused,
    HubUnavailable,
    JournalFull,
    LeaseTaken,
    LinkLost,
    MessageTooLarge,
    ReplyError,
    ShardUnknown,
)

EACH = [
    (HubUnavailable("there", "it is away"), "the hub there is not available: it is away"),
    (LinkLost("there", "it broke"), "the hub there is not available: it broke"),
    (JournalFull("there", 7, 70), "7 publications (70 bytes) already wait for it"),
    (HubRefused("there", "no"), "the hub there refused: no"),
    (HubMisconfigured("no such file"), "no such file"),
    (ReplyError("ERR syntax error"), "ERR syntax error"),
    (MessageTooLarge(5, 4), "a publication of 5 bytes is above the maximum of 4"),
    (Fenced("match:7", "aa", 3), "shard aa owns 'match:7' now, epoch 3"),
    (LeaseTaken(3, "h", 42), "shard 3 is already running: process 42 on host h"),
    (ShardUnknown("aa"), "no live shard is 'aa'"),
]


def test_one_that_nobody_owns_and_whose_first_try_is_unsure() -> None:
    said = str(Fenced("a", "", 3, is_unsure=True))
    assert said == "nobody owns 'a' now, epoch 3; an earlier try may have been taken"


@pytest.mark.parametrize(("error", "sentence"), EACH, ids=lambda value: type(value).__name__)
def test_each_says_its_facts(error: HubError, sentence: str) -> None:
    assert sentence in str(error)


def test_the_tree() -> None:
    named = {getattr(errors, name) for name in errors.__all__}
    assert {type(error) for error, _ in EACH} | {HubError} == named
    assert all(issubclass(error, HubError) for error in named)
    temporary = {error for error in named if issubclass(error, HubUnavailable)}
    assert temporary == {HubUnavailable, JournalFull, LinkLost}


def test_the_docstring_draws_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert name in errors.__doc__


def test_facts() -> None:
    full = JournalFull("there", 7, 70)
    assert (full.hub, full.waiting, full.waiting_bytes) == ("there", 7, 70)
    large = MessageTooLarge(5, 4)
    assert (large.size, large.maximum) == (5, 4)
    taken = LeaseTaken(3, "h", 42)
    assert (taken.shard, taken.host, taken.pid) == (3, "h", 42)


@pytest.mark.parametrize(
    ("message", "code", "is_later", "is_refusal"),
    [
        ("LOADING Redis is loading the dataset in memory", "LOADING", True, False),
        ("READONLY You can't write against a read only replica.", "READONLY", True, False),
        ("MASTERDOWN Link with MASTER is down", "MASTERDOWN", True, False),
        ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN", True, False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN", True, False),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", True, False),
        ("BUSY Redis is busy running a script.", "BUSY", True, False),
        ("ERR max number of clients reached", "MAXCLIENTS", True, False),
        ("WRONGPASS invalid username-password pair or user is disabled.", "WRONGPASS", False, True),
        ("NOAUTH Authentication required.", "NOAUTH", False, True),
        ("NOPERM this user has no permissions", "NOPERM", False, True),
        ("ERR ACL failure in script: User u has no permissions to run 'zadd'", "NOPERM", False, True),
        ("ERR The user executing the script can't run this command or subcommand", "NOPERM", False, True),
        ("ERR invalid password", "WRONGPASS", False, True),
        ("ERR AUTH <password> called without any password configured", "WRONGPASS", False, True),
        ("ERR Client sent AUTH, but no password is set", "WRONGPASS", False, True),
        ("ERR syntax error", "ERR", False, False),
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", False, False),
        ("", "", False, False),
    ],
)
def test_what_a_reply_means(message: str, code: str, is_later: bool, is_refusal: bool) -> None:
    error = ReplyError(message)
    assert (error.code, error.is_later, error.is_refusal, str(error)) == (code, is_later, is_refusal, message)
