"""The text protocol over real sockets, against a whole shard with a memory hub."""

from __future__ import annotations

import contextlib  # not `suppress` itself: trial takes a module's `suppress` for its own
import socket
import time

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from spread.hub.api import Format
from spread.node import codes
from spread.node.edge import text as edge
from spread.node.settings import TextSettings
from tests.cluster.shards import ClusterCase, is_clean, reactor

TOO_LONG = b"error: a message may have 100 bytes at most; closing\n"


class Talking(ClusterCase):
    async def test_the_greeting_of_the_article(self) -> None:
        shard = await self.start(text={"greeting": TextSettings().greeting})
        for number in (1, 2):
            peer = await self.connect(shard)
            await peer.hears(f"欢迎来到Spread Site,您是第{number}个客户端用户!\n".encode())

    async def test_the_exact_bytes_reach_the_others_and_not_the_sender(self) -> None:
        shard = await self.start()
        first, second, third = [await self.greeted(shard, number) for number in (1, 2, 3)]
        garbage = bytes(byte for byte in range(256) if byte != 0x0A) * 3 + b"\n"
        said = [b"hello\n", b"with CR\r\n", b"\n", "你好\n".encode(), garbage, b"\xff\xfe broken UTF-8\n"]
        for message in said:
            first.says(message)
        for other, greeting in ((second, b"hi 2\n"), (third, b"hi 3\n")):
            await other.hears(greeting + b"".join(said))
        second.says(b"thanks\n")
        await first.hears(b"hi 1\nthanks\n")
        self.assertEqual(shard.counters.messages_in, len(said) + 1)

    async def test_messages_of_one_read_are_messages_of_their_own(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start()
        peer = await self.greeted(shard, 1)
        peer.says(b"one\ntwo\nthree\n")
        await self.hear(ears, b"one\n", b"two\n", b"three\n")

    async def test_a_message_without_a_line_ending_is_sent_after_200_ms(self) -> None:
        shard = await self.start(text={"idle_flush_seconds": TextSettings().idle_flush_seconds})
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        said_at = time.monotonic()
        first.says(b"no line ending")
        await second.hears(b"hi 2\nno line ending")
        self.assertGreaterEqual(time.monotonic() - said_at, 0.19)
        self.assertLess(time.monotonic() - said_at, 2.0)

    async def test_close_without_a_line_ending_is_a_command(self) -> None:
        shard = await self.start()
        peer = await self.greeted(shard, 1)
        peer.says(b"close")
        self.assertTrue(is_clean(await peer.ended()))

    async def test_what_follows_in_time_belongs_to_the_message(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(text={"idle_flush_seconds": 0.3})
        peer = await self.greeted(shard, 1)
        for piece in (b"in ", b"four ", b"pieces", b"\nand"):
            peer.says(piece)
            await deferLater(reactor, 0.12)
        await self.hear(ears, b"in four pieces\n", b"and")

    async def test_a_shard_that_was_held_up_does_not_cut_messages(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(text={"idle_flush_seconds": 0.3})
        busy = await self.greeted(shard, 1)
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await self.until(lambda: shard.counters.clients == 2)

            def hold_up(data: bytes) -> None:
                sock.send(b"message\n")
                time.sleep(0.4)  # longer than one waits for a line ending, and before that is read

            busy.dataReceived = hold_up  # type: ignore[method-assign]
            sock.send(b"one ")
            session = shard.shard._text.sessions[2]
            await self.until(lambda: session._edge._framer.has_partial)  # type: ignore[attr-defined]
            shard.hub.publish("lobby", b"hold up\n", Format.TEXT, 2)
            await self.hear(ears, b"hold up\n", b"one message\n")

    async def test_no_time_passes_for_a_client_that_is_not_read(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(text={"idle_flush_seconds": 0.3})
        peer = await self.greeted(shard, 1)
        connection = shard.shard._text.sessions[1]._edge
        peer.says(b"the first half, ")
        await self.until(lambda: connection._framer.has_partial)  # type: ignore[attr-defined]
        connection.pause_reading()
        peer.says(b"the second half\n")
        await deferLater(reactor, 0.4)
        self.assertEqual(ears.words, [])
        connection.resume_reading()
        await self.hear(ears, b"the first half, the second half\n")

    async def test_a_client_that_is_not_read_has_its_messages_whole(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(text={"max_unacknowledged": 1})
        peer = await self.greeted(shard, 1)
        self.exchange.cut()
        peer.says(b"one\ntwo, the first half")
        await self.until(lambda: shard.counters.reading_pauses == 1)
        peer.says(b" and the second\n")
        await deferLater(reactor, 0.15)  # three times as long as one waits for a line ending
        self.exchange.restore()
        await self.hear(ears, b"one\n", b"two, the first half and the second\n")

    async def test_a_client_moves_to_another_channel(self) -> None:
        shard = await self.start()
        first, second, third = [await self.greeted(shard, number) for number in (1, 2, 3)]
        lobby = shard.shard._channels.get("lobby")
        assert lobby is not None
        first.says(b"/join side\nfor nobody\n")
        await self.until(lambda: lobby.members.keys() == {2, 3})
        second.says(b"/join side\r\n")
        await self.until(lambda: lobby.members.keys() == {3})
        first.says(b"for the side\n/join \xff\n")
        await second.hears(b"hi 2\nfor the side\n")
        await first.hears(b"hi 1\nerror: " + codes.BAD_CHANNEL.encode() + b"\n")
        self.assertEqual(third.heard, b"hi 3\n")

    async def test_publications_of_other_kinds_arrive_as_lines(self) -> None:
        shard = await self.start()
        peer = await self.greeted(shard, 1)
        shard.hub.publish("lobby", b'{"score": 3}', Format.JSON, 0)
        shard.hub.publish("lobby", '"你好"'.encode(), Format.JSON, 0)
        shard.hub.publish("lobby", b'"\xff"', Format.JSON, 0)
        shard.hub.publish("lobby", b"\x00\x01", Format.BINARY, 0)
        await peer.hears(b'hi 1\n{"score": 3}\n' + "你好\n".encode() + b'"\xff"\n\x00\x01\n')

    async def test_the_rate_limit(self) -> None:
        shard = await self.start(text={"max_messages_per_second": 0.01})
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        first.says(b"one\ntwo\n")
        too_fast = codes.TOO_FAST.format(limit=0.01).encode()
        await first.hears(b"hi 1\nerror: " + too_fast + b"\n")
        await second.hears(b"hi 2\none\n")


class TextCase(ClusterCase):
    async def until_refused(self, sock: socket.socket, data: bytes) -> None:
        """Send without end, and never close, until the other side has had enough."""
        sock.setblocking(False)
        deadline = time.monotonic() + 10
        with self.assertRaises(ConnectionError):
            while time.monotonic() < deadline:
                await deferLater(reactor, 0.002)
                with contextlib.suppress(BlockingIOError):
                    sock.send(data)


class Ending(TextCase):
    async def test_close_ends_the_connection(self) -> None:
        shard = await self.start()
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        first.says(b"good-bye\nclose\nnot said\n")
        self.assertTrue(is_clean(await first.ended()))
        second.says(b"close\r\n")
        self.assertTrue(is_clean(await second.ended()))
        self.assertEqual(second.heard, b"hi 2\ngood-bye\n")
        await self.until(lambda: not shard.counters.clients)
        self.assertEqual(shard.shard._text.sessions, {})

    async def test_a_message_of_exactly_the_limit_and_one_above(self) -> None:
        shard = await self.start(text={"message_max_bytes": 100})
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        first.says(b"x" * 100 + b"\n" + b"y" * 101 + b"\n")
        await first.hears(b"hi 1\n" + TOO_LONG)
        self.assertTrue(is_clean(await first.ended()))
        await second.hears(b"hi 2\n" + b"x" * 100 + b"\n")
        self.assertEqual(shard.counters.too_long, 1)

    async def test_the_default_limit(self) -> None:
        shard = await self.start()
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        longest = b"x" * TextSettings().message_max_bytes + b"\n"
        first.says(longest)
        await second.hears(b"hi 2\n" + longest)
        first.says(b"x" + longest)
        await first.until(lambda: b"error" in first.heard)

    async def test_who_goes_on_sending_can_still_read_what_went_wrong(self) -> None:
        shard = await self.start(text={"message_max_bytes": 100})
        peer = await self.greeted(shard, 1)
        peer.stops_reading()
        for _ in range(64):
            peer.says(b"x" * 65536)
        await self.until(lambda: shard.counters.too_long == 1)
        await self.until(lambda: not peer.transport.dataBuffer and not peer.transport._tempDataBuffer)  # type: ignore
        peer.goes_on_reading()
        self.assertTrue(is_clean(await peer.ended()), "no reset has taken the last words away")
        self.assertEqual(peer.heard, b"hi 1\n" + TOO_LONG)

    async def test_who_never_stops_sending_is_cut_after_a_while(self) -> None:
        self.patch(edge, "LINGER_SECONDS", 0.1)
        shard = await self.start(text={"message_max_bytes": 100})
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await self.until_refused(sock, b"x" * 200)
            await self.until(lambda: not shard.counters.clients)

    async def test_who_sends_far_too_much_after_the_end_is_cut_at_once(self) -> None:
        self.patch(edge, "LINGER_SECONDS", 60.0)
        self.patch(edge, "LINGER_MAX_BYTES", 100_000)
        shard = await self.start(text={"message_max_bytes": 100})
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await self.until_refused(sock, b"x" * 20_000)
            await self.until(lambda: not shard.counters.clients)

    async def test_half_closed_right_after_saying_something(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start()
        peer = await self.connect(shard)
        peer.says(b"a line\nand no line")
        peer.ends_saying()
        await self.hear(ears, b"a line\n", b"and no line")
        self.assertTrue(is_clean(await peer.ended()))

    async def test_closed_right_after_saying_something(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start()
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            sock.send(b"a line\nand no line")
        await self.hear(ears, b"a line\n", b"and no line")
        await self.until(lambda: shard.counters.connects == 1 and not shard.counters.clients)

    async def test_closed_right_after_saying_something_while_the_hub_is_away(self) -> None:
        ears = self.listen("lobby", "side")
        shard = await self.start()
        self.exchange.cut()
        for said in (b"first\n", b"/join side\nsecond\n", b"third"):
            with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
                sock.send(said)
        await self.until(lambda: shard.counters.connects == 3)
        await deferLater(reactor, 0.1)
        self.exchange.restore()
        await self.until(lambda: len(ears.heard) == 3 and not shard.counters.clients)
        said = {(channel, publication.data) for channel, publication in ears.heard}
        self.assertEqual(said, {("lobby", b"first\n"), ("side", b"second\n"), ("lobby", b"third")})

    async def test_reset_connections_leave_nothing_behind(self) -> None:
        shard = await self.start()
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        first.says(b"half")
        first.resets()
        await self.until(lambda: shard.counters.clients == 1)
        second.says(b"anybody?\n")
        second.resets()
        await self.until(lambda: shard.counters.clients == 0)
        self.assertEqual(len(shard.shard._channels), 0)

    async def test_a_client_that_does_not_read_is_dropped_and_nobody_else_notices(self) -> None:
        shard = await self.start(node={"outbox_max_bytes": 65536})
        reader = await self.greeted(shard, 1)
        lazy = await self.greeted(shard, 2, receive_bytes=4096)
        lazy.stops_reading()
        line = b"x" * 999 + b"\n"
        said = 0
        while not shard.counters.slow_clients:
            for _ in range(20):
                shard.hub.publish("lobby", line, Format.TEXT, 0)
            said += 20
            await reader.until(lambda said=said: len(reader.heard) == 5 + said * 1000)
            self.assertLess(said, 20_000)
        await self.until(lambda: shard.counters.clients == 1)
        lazy.goes_on_reading()
        self.assertFalse(is_clean(await lazy.ended()))
        self.assertEqual((shard.counters.slow_clients, reader.end), (1, None))
        self.assertGreater(shard.counters.pressed, 0)

    async def test_who_does_not_take_its_last_words_is_cut_after_a_while(self) -> None:
        self.patch(edge, "FINISH_SECONDS", 0.2)
        shard = await self.start()
        lazy = await self.greeted(shard, 1, receive_bytes=4096)
        lazy.stops_reading()
        session = shard.shard._text.sessions[1]
        while session.outbox.waiting_bytes < 200_000:
            shard.hub.publish("lobby", b"x" * 50_000, Format.TEXT, 0)
            await deferLater(reactor, 0)
        lazy.says(b"close\n")
        await self.until(lambda: not shard.counters.clients)
        self.assertEqual((session.outbox.waiting_bytes, shard.counters.slow_clients), (0, 0))


class Refusing(TextCase):
    async def test_a_full_shard(self) -> None:
        shard = await self.start(node={"max_clients": 2})
        first, _ = await self.greeted(shard, 1), await self.greeted(shard, 2)
        refused = await self.connect(shard)
        refused.says(b"let me in\n")
        self.assertTrue(is_clean(await refused.ended()))
        self.assertEqual(refused.heard, b"error: this shard is full (2 clients); try again later\n")
        self.assertEqual((shard.counters.clients, shard.counters.connects), (2, 3))
        self.assertEqual((shard.counters.refused_full, shard.counters.refused_address), (1, 0))
        self.assertEqual(shard.counters.messages_in, 0)
        first.leaves()
        await self.until(lambda: shard.counters.clients == 1)
        await self.greeted(shard, 3)

    async def test_too_many_from_one_address(self) -> None:
        shard = await self.start(node={"max_clients_per_address": 1})
        first = await self.greeted(shard, 1)
        refused = await self.connect(shard)
        self.assertTrue(is_clean(await refused.ended()))
        self.assertEqual(refused.heard, b"error: too many connections from your address (1)\n")
        self.assertEqual((shard.counters.refused_full, shard.counters.refused_address), (0, 1))
        first.leaves()
        await self.until(lambda: shard.counters.clients == 0)
        await self.greeted(shard, 2)

    async def test_a_refused_client_that_stays_is_cut_after_a_while(self) -> None:
        self.patch(edge, "LINGER_SECONDS", 0.1)
        shard = await self.start(node={"max_clients": 1})
        await self.greeted(shard, 1)
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await self.until(lambda: shard.counters.refused_full == 1)
            await self.until_refused(sock, b"x")

    async def test_refused_clients_that_stay_do_not_use_up_the_files(self) -> None:
        shard = await self.start(node={"max_clients": 1})
        await self.greeted(shard, 1)
        socks = [socket.create_connection(("127.0.0.1", shard.port("text"))) for _ in range(100)]
        try:
            await self.until(lambda: shard.counters.refused_full == 100)
            await deferLater(reactor, 0)
            self.assertLessEqual(shard.shard._text.lingering, edge.MAX_LINGERING)
        finally:
            for sock in socks:
                sock.close()
        await self.until(lambda: shard.shard._text.lingering == 0)
        refused = await self.connect(shard)
        await refused.until(lambda: b"full" in refused.heard)

    async def test_a_hub_that_is_away(self) -> None:
        shard = await self.start(hub={"publish_seconds": 0.2})
        self.exchange.cut()
        refused = await self.connect(shard)
        refused.says(b"hello?\n")
        self.assertTrue(is_clean(await refused.ended()))
        self.assertEqual(refused.heard, b"error: " + codes.HUB_AWAY.encode() + b"\n")
        self.assertEqual(shard.counters.refused_hub, 1)


class Stopping(ClusterCase):
    async def test_everybody_gets_what_was_said_and_the_goodbye(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(4, text={"idle_flush_seconds": 5.0})
        first, second = await self.greeted(shard, 1), await self.greeted(shard, 2)
        first.says(b"a line\nlast words")
        await self.until(lambda: shard.counters.messages_in == 1)
        await shard.shard.stop()
        for peer in (first, second):
            self.assertTrue(is_clean(await peer.ended()))
        self.assertEqual(first.heard, b"hi 1\nbye 4\n")
        self.assertEqual(second.heard, b"hi 2\na line\nlast wordsbye 4\n")
        await self.hear(ears, b"a line\n", b"last words")

    async def test_who_waits_to_be_accepted_is_told_too(self) -> None:
        shard = await self.start(node={"stop_seconds": 0.3})
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await shard.shard.stop()
            sock.settimeout(5)
            with sock.makefile("rb") as file:
                heard = await deferToThread(file.read)  # the connection may end a turn after the shard
        self.assertEqual(heard, b"hi 1\nbye 0\n")

    async def test_who_does_not_go_is_cut(self) -> None:
        shard = await self.start(node={"stop_seconds": 0.5})
        with socket.create_connection(("127.0.0.1", shard.port("text"))) as sock:
            await self.until(lambda: shard.counters.clients == 1)
            started = time.monotonic()
            await shard.shard.stop()
            await self.until(lambda: shard.counters.clients == 0)
            self.assertLess(time.monotonic() - started, 1.0)
            sock.settimeout(5)
            with self.assertRaises(ConnectionError):
                while sock.recv(1000):
                    pass
                sock.send(b"x")
                sock.send(b"x")

    async def test_a_client_in_the_middle_of_a_fast_talk(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start()
        peer = await self.greeted(shard, 1)
        peer.says(b"x" * 99 + b"\n")
        for _ in range(300):
            peer.says((b"x" * 99 + b"\n") * 100)
        await self.until(lambda: shard.counters.messages_in > 50)
        await shard.shard.stop()
        self.assertTrue(is_clean(await peer.ended()))
        self.assertEqual(peer.heard, b"hi 1\nbye 0\n")
        self.assertEqual(len(ears.heard), shard.counters.messages_in)
