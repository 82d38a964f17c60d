"""Real processes, really killed: shards, the hub's server, and the shard that had started the hub."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from tests.hub.servers import Valkey
from tests.live.processes import Client, Crowd, crowd_of, home, reserved_port, started, until

pytestmark = pytest.mark.live


def check_all_hear(crowd: Crowd, message: bytes, seconds: float = 10) -> None:
    """One of those who are left speaks, and all others hear it exactly once."""
    speaker, *others = (client for client in crowd.clients if not client.is_closed)
    speaker.say(message)
    crowd.until(lambda: all(message in client.received for client in others), seconds, f"{message!r} for all")
    assert all(bytes(client.received).count(message) == 1 for client in others)


def test_a_killed_shard_is_back_and_the_clients_of_others_notice_nothing(stack: ExitStack) -> None:
    node = started(stack, "--shard", "0-3", home=stack.enter_context(home()))
    port = node.wait_ready(4)
    crowd = crowd_of(stack, port, 80)
    crowd.forget()
    # Traffic all the while: everybody says something in turn.
    said: dict[bytes, object] = {}

    def talk() -> None:
        alive = [client for client in crowd.clients if not client.is_closed]
        speaker = alive[len(said) % len(alive)]
        message = b"message %d" % len(said)
        said[message] = speaker
        with suppress(ConnectionError):  # the one of the killed shard that has not seen it yet
            speaker.say(message + b"\n")
        crowd.pump(0.005)

    for _ in range(40):
        talk()
    victim = node.children()[2]
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while len(node.ready) < 5:
        assert time.monotonic() - killed_at < 3, "not back within 3 s"
        talk()
    assert node.ready[-1][0] - killed_at < 3
    assert "shard=2" in node.ready[-1][1]
    assert node.children()[2] != victim
    for _ in range(40):
        talk()
    lost = [client for client in crowd.clients if client.is_closed]
    kept = [client for client in crowd.clients if not client.is_closed]
    assert 0 < len(lost) < 50, "the clients of one shard, and no others"
    check_all_hear(crowd, b"the last\n")
    # What a client of the killed shard said in its last moment may be gone with it. Whatever was heard at all
    # was heard by everybody who stayed but its speaker, once, and in one order.
    spoken = {message for message, speaker in said.items() if speaker in kept}
    order = {message: rank for rank, message in enumerate(said)}

    def missing(client: Client) -> set[bytes]:
        own = {message for message, speaker in said.items() if speaker is client}
        return spoken - own - set(bytes(client.received).splitlines())

    crowd.until(lambda: not any(missing(client) for client in kept), 10, "what clients of living shards said")
    for client in kept:
        lines = bytes(client.received).splitlines()
        heard = [line for line in lines if line in said]
        assert len(heard) == len(set(heard))
        mine = [order[line] for line in heard if said[line] is kept[0]]
        assert mine == sorted(mine)
    new = crowd_of(stack, port, 40)
    check_all_hear(new, b"after all\n")
    assert node.stop() == 0


def test_connections_made_while_a_shard_is_down_wait_for_it(stack: ExitStack) -> None:
    node = started(stack, "--shard", "0-0", home=stack.enter_context(home()))
    port = node.wait_ready(1)
    os.kill(node.children()[0], signal.SIGKILL)
    crowd = crowd_of(stack, port, 50)
    check_all_hear(crowd, b"hello\n")
    assert node.stop() == 0


def test_a_roll_replaces_every_shard_and_refuses_nobody(stack: ExitStack) -> None:
    node = started(stack, "--shard", "0-2", home=stack.enter_context(home()))
    port = node.wait_ready(3)
    before = node.children()
    problems: list[object] = []
    rounds = 0
    done = threading.Event()

    def come_and_go() -> None:
        nonlocal rounds
        while not done.is_set():
            crowd = Crowd(port)
            try:
                crowd.enter()
                crowd.greeted()
                rounds += 1
            except (AssertionError, OSError) as error:
                problems.append(error)
            finally:
                crowd.close()

    visitors = [threading.Thread(target=come_and_go) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    node.process.send_signal(signal.SIGHUP)
    until(lambda: len(node.ready) == 6, 30, "three replacements")
    done.set()
    for visitor in visitors:
        visitor.join(30)
    assert not problems
    assert rounds > 10
    assert not set(before.values()) & set(node.children().values())
    assert [line.split()[1] for _, line in node.ready[3:]] == ["shard=0", "shard=1", "shard=2"]
    assert node.stop() == 0


def test_the_hubs_server_is_killed_ten_times(stack: ExitStack) -> None:
    valkey = stack.enter_context(Valkey().start())
    path = stack.enter_context(home())
    node = started(stack, "--shard", "0-1", "--hub", valkey.url, home=path)
    port = node.wait_ready(2)
    shards = node.children()
    crowd = crowd_of(stack, port, 30)
    slowest = 0.0
    for number in range(10):
        # Shards count each other twice a second; who has never been counted is not waited for.
        settled = time.monotonic() + 0.6
        crowd.until(lambda s=settled: time.monotonic() > s, 1, "a count")
        valkey.kill()
        # Said while the server is away: waits in the journal.
        crowd.clients[number].say(b"kept %d\n" % number)
        crowd.pump(0.2)
        valkey.start()
        back_at = time.monotonic()
        # Asked again and again, as a player would: the first that all hear ends the outage.
        attempt = 0
        while True:
            message = b"again %d.%d\n" % (number, attempt)
            attempt += 1
            crowd.clients[0].say(message)
            try:
                crowd.until(lambda m=message: all(m in c.received for c in crowd.clients[1:]), 0.2, "all")
            except AssertionError:
                assert time.monotonic() - back_at < 3, f"outage {number} lasts"
                continue
            break
        slowest = max(slowest, time.monotonic() - back_at)
        kept = b"kept %d\n" % number
        others = [client for client in crowd.clients if client is not crowd.clients[number]]
        crowd.until(lambda k=kept, o=others: all(k in c.received for c in o), 3, "what was said meanwhile")
    assert slowest < 3
    print(f"slowest of ten: {slowest:.2f} s")
    assert not any(client.is_closed for client in crowd.clients)
    assert node.children() == shards, "the same processes all the time"
    for client in crowd.clients:
        lines = [line for line in bytes(client.received).splitlines() if line.startswith((b"kept", b"again"))]
        assert len(lines) == len(set(lines)), "nothing twice"
    assert node.stop() == 0


def test_a_frozen_server_costs_no_client(stack: ExitStack) -> None:
    valkey = stack.enter_context(Valkey().start())
    path = stack.enter_context(home())
    node = started(
        stack,
        *("--shard", "0-1", "--hub", valkey.url),
        *("--hub-reply-seconds", "1", "--hub-publish-seconds", "1"),
        home=path,
    )
    port = node.wait_ready(2)
    crowd = crowd_of(stack, port, 10)
    crowd.forget()
    valkey.stop()
    crowd.clients[0].say(b"lost\n")
    crowd.until(lambda: crowd.clients[0].lines, 5, "an error within the deadline")
    assert bytes(crowd.clients[0].received).startswith(b"error: the message was not sent")
    valkey.cont()

    def hears() -> bool:
        crowd.clients[0].say(b"back\n")
        crowd.pump(0.2)
        return all(b"back\n" in client.received for client in crowd.clients[1:])

    crowd.until(hears, 10, "messages flow again")
    assert not any(client.is_closed for client in crowd.clients)
    assert node.stop() == 0


def test_killing_the_shard_that_started_the_hub_leaves_it_to_the_others(stack: ExitStack) -> None:
    path = stack.enter_context(home())
    reserved, port = reserved_port()
    stack.callback(reserved.close)
    first = started(stack, "--shard", "0", home=path, text=f"127.0.0.1:{port}")
    first.wait_ready(1)
    server = int((path / "hub.pid").read_text())
    second = started(stack, "--shard", "1", home=path, text=f"127.0.0.1:{port}")
    second.wait_ready(1)
    first.process.kill()
    first.process.wait()
    crowd = crowd_of(stack, port, 10)
    check_all_hear(crowd, b"still here\n")
    assert int((path / "hub.pid").read_text()) == server
    # Its number is free at once: this machine can see that the process is gone.
    third = started(stack, "--shard", "0", home=path, text=f"127.0.0.1:{port}")
    third.wait_ready(1, 5)
    both = crowd_of(stack, port, 40)
    check_all_hear(both, b"and both\n")
    assert second.stop() == 0
    assert third.stop() == 0
    assert not (path / "hub.sock").exists(), "the last one out stops the server"


def test_the_embedded_server_is_started_again_when_it_is_killed(stack: ExitStack) -> None:
    path = stack.enter_context(home())
    node = started(stack, "--shard", "0-1", home=path)
    port = node.wait_ready(2)
    crowd = crowd_of(stack, port, 10)
    os.kill(int((path / "hub.pid").read_text()), signal.SIGKILL)

    def hears() -> bool:
        crowd.clients[0].say(b"back\n")
        crowd.pump(0.2)
        return all(b"back\n" in client.received for client in crowd.clients[1:])

    crowd.until(hears, 10, "messages flow again")
    assert not any(client.is_closed for client in crowd.clients)
    assert node.stop() == 0
    assert not (path / "hub.sock").exists()


def test_the_number_of_a_killed_shard_is_free_again_within_ten_seconds(stack: ExitStack) -> None:
    """As another machine sees it, which cannot look up the pid."""
    valkey = stack.enter_context(Valkey().start())
    path = stack.enter_context(home())
    first = started(stack, "--shard", "7", "--hub", valkey.url, home=path)
    first.wait_ready(1)
    held = valkey.command("GET", "spread:shard:7")
    first.process.kill()
    first.process.wait()
    killed_at = time.monotonic()
    elsewhere = held.replace(b'"machine":"', b'"machine":"elsewhere-')
    valkey.command("SET", "spread:shard:7", elsewhere, "KEEPTTL")
    refused = started(stack, "--shard", "7", "--hub", valkey.url, home=path)
    assert refused.process.wait(10) == 3

    def taken() -> bool:
        node = started(stack, "--shard", "7", "--hub", valkey.url, home=path)
        until(lambda: node.ready or node.process.poll() is not None, 10, "ready or refused")
        return bool(node.ready)

    until(taken, 15, "the number is free")
    assert time.monotonic() - killed_at < 11


def test_a_shard_whose_number_was_taken_stops(stack: ExitStack) -> None:
    valkey = stack.enter_context(Valkey().start())
    path = stack.enter_context(home())
    node = started(stack, "--shard", "5", "--hub", valkey.url, home=path)
    node.wait_ready(1)
    held = valkey.command("GET", "spread:shard:5")
    other = held.replace(b'"incarnation":"', b'"incarnation":"feed').replace(b'"host":"', b'"host":"other-')
    valkey.command("SET", "spread:shard:5", other, "PX", 20000)
    assert node.process.wait(20) == 3
    assert "shard 5 is already running" in node.stderr()


def test_auto_takes_the_lowest_free_numbers(stack: ExitStack) -> None:
    valkey = stack.enter_context(Valkey().start())
    path = stack.enter_context(home())
    nodes = [started(stack, "--shard", "auto", "--hub", valkey.url, home=path) for _ in range(3)]
    for node in nodes:
        node.wait_ready(1)
    assert sorted(node.ready[0][1].split()[1] for node in nodes) == ["shard=0", "shard=1", "shard=2"]
    gone = next(node for node in nodes if "shard=1" in node.ready[0][1])
    assert gone.stop() == 0
    fourth = started(stack, "--shard", "auto", "--hub", valkey.url, home=path)
    fourth.wait_ready(1)
    assert "shard=1" in fourth.ready[0][1]
