"""The model finds what is wrong, and nothing else: each promise is broken once, by hand."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from spread.hub.api import Broken, ClientInfo, Left, Position, Publication, Stream
from tests.hub.model import Attempt, Kept, Model, shown

EPOCH, OTHER = "first", "second"


class _Told(SynchronousTestCase):
    """Of one channel that keeps 3, and the shards 0 and 1."""

    def setUp(self) -> None:
        self.server: dict[str, Kept] = {}
        self.model = Model({"a": 3}, self.server.get)

    # -- a hub that keeps its promise --------------------------------------------------------------------

    def takes(self, attempt: Attempt) -> Publication:
        """The server takes a publication."""
        if not attempt.is_kept:
            return Publication(attempt.data, 1, b"", 0)
        kept = self.server.setdefault("a", Kept(Position(EPOCH, 0), []))
        kept.position = Position(kept.position.epoch, kept.position.offset + 1)
        kept.entries = [*kept.entries, (kept.position.offset, attempt.data)][-3:]
        return Publication(attempt.data, 1, b"", 0, offset=kept.position.offset, epoch=kept.position.epoch)

    def publish(self, shard: int = 0, *, is_kept: bool = True, **how: Any) -> Publication:
        """It is made, taken and acknowledged."""
        attempt = self.model.publishes("a", shard, is_kept=is_kept, **how)
        publication = self.takes(attempt)
        self.model.acknowledged(attempt, _at(publication) if is_kept else None)
        return publication

    def follow(self, shard: int = 0) -> None:
        kept = self.server.setdefault("a", Kept(Position(EPOCH, 0), []))
        self.model.subscribed(shard, "a", kept.position)

    def hear(self, shard: int, *events: Any) -> None:
        for event in events:
            self.model.heard(shard, "a", event)

    def read(
        self, offsets: list[int], since: int | None = None, limit: int = -1, reverse: bool = False
    ) -> None:
        """A read of three entries, 2 to 4, gives these."""
        published = [self.publish() for _ in range(4)]
        found = [published[offset - 1] for offset in offsets]
        place = None if since is None else Position("", since)
        top = self.server["a"].position
        self.model.read(self.model.asks(), "a", place, limit, reverse, Stream(top, found))

    # -- what the model says -----------------------------------------------------------------------------

    def right(self) -> None:
        self.model.settled()
        self.model.check()

    def wrong(self, what: str) -> None:
        self.model.settled()
        self.assertIn(what, self.model.wrong)
        self.assertTrue(any(line.endswith(f"WRONG: {self.model.wrong}") for line in self.model.story))
        self.assertRaises(AssertionError, self.model.check)


class Hearing(_Told):
    def test_all_is_well(self) -> None:
        self.follow(0)
        self.follow(1)
        events = [self.publish(is_kept=bool(number % 2)) for number in range(10)]
        self.hear(0, *events, Left(ClientInfo("ann", "c1")))
        self.hear(1, *events)
        self.right()

    def test_a_hole(self) -> None:
        self.follow()
        first, _, third = self.publish(), self.publish(), self.publish()
        self.hear(0, first, third)
        self.wrong("is at firs:1 in a and gets firs:3")

    def test_a_double(self) -> None:
        self.follow()
        first, second = self.publish(), self.publish()
        self.hear(0, first, second, first)
        self.wrong("gets firs:1 again")

    def test_a_double_for_who_has_no_position(self) -> None:
        self.model.subscribed(0, "a", None)
        first = self.publish()
        self.hear(0, first, first)
        self.wrong("gets firs:1 again")

    def test_a_plain_double(self) -> None:
        self.model.subscribed(0, "a", None)
        first = self.publish(is_kept=False)
        self.hear(0, first, first)
        self.wrong("twice")

    def test_what_was_on_its_way_when_following_began(self) -> None:
        self.model.subscribed(0, "a", None)
        first, second, third = self.publish(), self.publish(), self.publish()
        self.hear(0, first)
        self.follow()
        self.hear(0, second, third)
        self.right()

    def test_what_was_on_its_way_is_lost(self) -> None:
        self.model.subscribed(0, "a", None)
        first, _, third = self.publish(), self.publish(), self.publish()
        self.hear(0, first)
        self.follow()
        self.hear(0, third)
        self.wrong("has lost b'a1'")

    def test_what_was_on_its_way_comes_twice(self) -> None:
        self.model.subscribed(0, "a", None)
        first, second = self.publish(), self.publish()
        self.hear(0, first)
        self.follow()
        self.hear(0, second, second)
        self.wrong("again")

    def test_a_beginning_before_what_was_heard(self) -> None:
        self.follow()
        self.hear(0, self.publish())
        self.model.unsubscribes(0, "a")
        self.model.subscribed(0, "a", Position(EPOCH, 0))
        self.wrong("begins at firs:0")

    def test_another_position_while_it_follows(self) -> None:
        self.follow()
        self.hear(0, self.publish())
        self.model.subscribed(0, "a", Position(EPOCH, 2))
        self.wrong("is told firs:2")

    def test_two_orders(self) -> None:
        for shard in (0, 1):
            self.model.subscribed(shard, "a", None)
        one, other = self.publish(0, is_kept=False), self.publish(1, is_kept=False)
        self.hear(0, one, other)
        self.hear(1, other, one)
        self.wrong("were heard in two orders")

    def test_not_in_the_order_in_which_it_was_made(self) -> None:
        self.follow()
        plain, kept = self.publish(is_kept=False), self.publish()
        self.hear(0, kept, plain)
        self.wrong("which was made later")

    def test_what_is_read_may_come_late_to_the_deaf(self) -> None:
        self.follow(0)
        self.follow(1)
        self.model.deafens(0, "a")
        kept, plain = self.publish(), self.publish(is_kept=False)
        self.hear(0, plain)
        self.model.heard(0, "a", kept, is_read=True)
        self.hear(1, kept, plain)
        self.right()

    def test_what_is_read_comes_late(self) -> None:
        self.follow()
        kept, plain = self.publish(), self.publish(is_kept=False)
        self.hear(0, plain)
        self.model.heard(0, "a", kept, is_read=True)
        self.wrong("which was made later")

    def test_what_is_read_may_be_earlier_than_what_comes_later(self) -> None:
        self.follow(0)
        self.follow(1)
        plain, kept = self.publish(is_kept=False), self.publish()
        self.model.heard(0, "a", kept, is_read=True)
        self.model.arrives(0, "a", plain.data)
        self.hear(0, plain)
        self.hear(1, plain, kept)
        self.right()

    def test_what_is_read_comes_early(self) -> None:
        self.follow()
        plain, kept = self.publish(is_kept=False), self.publish()
        self.model.arrives(0, "a", plain.data)
        self.model.heard(0, "a", kept, is_read=True)
        self.hear(0, plain)
        self.wrong("which was made later")

    def test_what_the_server_sends_back_may_be_overtaken(self) -> None:
        self.follow()
        self.model.sends_back()
        kept, plain = self.publish(), self.publish(is_kept=False)
        self.hear(0, plain, kept)
        self.right()

    def test_what_it_takes_again_may_not(self) -> None:
        self.follow()
        self.model.sends_back()
        self.hear(0, self.publish())
        kept, plain = self.publish(), self.publish(is_kept=False)
        self.hear(0, plain, kept)
        self.wrong("which was made later")

    def test_what_nobody_published(self) -> None:
        self.hear(0, Publication(b"x", 1, b"", 0))
        self.wrong("which nobody published there")

    def test_what_was_refused(self) -> None:
        attempt = self.model.publishes("a", 0, is_kept=False)
        self.model.failed(attempt, is_unknown=False)
        self.hear(0, self.takes(attempt))
        self.wrong("which was refused")

    def test_what_failed_perhaps(self) -> None:
        attempt = self.model.publishes("a", 0, is_kept=False)
        self.model.failed(attempt, is_unknown=True)
        self.hear(0, self.takes(attempt))
        self.right()

    def test_a_position_that_got_lost(self) -> None:
        kept = self.publish()
        self.hear(0, Publication(kept.data, 1, b"", 0))
        self.wrong("without the position that it has")

    def test_a_shard_that_has_stopped(self) -> None:
        self.follow()
        event = self.publish()
        self.model.leaves(0)
        self.right()
        self.hear(0, event)
        self.wrong("has stopped and hears")


class Losing(_Told):
    def test_left_behind(self) -> None:
        self.follow()
        self.publish()
        self.wrong("is left at firs:0 in a, the top is firs:1")

    def test_a_silent_loss(self) -> None:
        self.model.subscribed(0, "a", None)
        first, _ = self.publish(is_kept=False), self.publish(is_kept=False)
        self.hear(0, first)
        self.wrong("has lost b'a1'")

    def test_a_silent_loss_of_what_is_kept(self) -> None:
        self.model.subscribed(0, "a", None)
        self.publish()
        self.wrong("has lost b'a0'")

    def test_a_silent_loss_with_a_key(self) -> None:
        self.model.subscribed(0, "a", None)
        for _ in range(2):
            self.publish(is_kept=False, key="k")
        self.wrong("has lost b'a0'")

    def test_a_loss_that_is_told(self) -> None:
        self.model.subscribed(0, "a", None)
        since = self.model.now
        self.publish(is_kept=False)
        self.model.may_lose(0, since)
        self.publish(is_kept=False)
        self.model.told_of_loss(0)
        self.right()

    def test_a_loss_after_it_was_told(self) -> None:
        self.model.subscribed(0, "a", None)
        self.model.may_lose(0)
        self.model.told_of_loss(0)
        self.publish(is_kept=False)
        self.wrong("has lost b'a0'")

    def test_a_loss_that_is_never_told(self) -> None:
        self.model.may_lose(0)
        self.wrong("was never told")

    def test_who_has_given_up_loses_nothing(self) -> None:
        self.follow()
        self.model.unsubscribes(0, "a")
        self.publish()
        self.publish(is_kept=False)
        self.right()

    def test_broken_without_cause(self) -> None:
        self.follow()
        self.publish()
        second = self.publish()
        self.hear(0, Broken(Position(EPOCH, 1)), second)
        self.wrong("all above 0 is kept")

    def test_broken_where_nothing_is_missing(self) -> None:
        self.follow()
        first = self.publish()
        self.hear(0, first)
        self.model.trims("a")
        self.hear(0, Broken(Position(EPOCH, 1)))
        self.wrong("nothing is missing")

    def test_broken_since_it_was_trimmed(self) -> None:
        self.follow()
        events = [self.publish() for _ in range(5)]
        self.hear(0, Broken(Position(EPOCH, 2)), *events[2:])
        self.right()

    def test_broken_since_it_is_trimmed_by_somebody(self) -> None:
        self.follow()
        self.publish()
        self.model.begins_to_trim("a")
        self.hear(0, Broken(Position(EPOCH, 1)))
        self.server["a"].entries.clear()
        self.model.ends_trimming("a", is_done=True)
        self.right()

    def test_nobody_has_trimmed_after_all(self) -> None:
        self.follow()
        self.publish()
        self.model.begins_to_trim("a")
        self.model.ends_trimming("a", is_done=False)
        self.hear(0, Broken(Position(EPOCH, 1)))
        self.wrong("all above 0 is kept")

    def test_a_hole_that_is_not_told(self) -> None:
        self.follow()
        *_, last = [self.publish() for _ in range(5)]
        self.hear(0, last)
        self.wrong("is at firs:0 in a and gets firs:5")


class Epochs(_Told):
    def forget(self) -> None:
        self.model.forgets("a", self.server["a"].position.epoch)
        self.server["a"] = Kept(Position(OTHER, 0), [])

    def test_another_epoch_is_told(self) -> None:
        self.follow()
        self.hear(0, self.publish())
        self.forget()
        self.hear(0, Broken(Position(OTHER, 0)), self.publish())
        self.right()

    def test_another_epoch_is_not_told(self) -> None:
        self.follow()
        self.hear(0, self.publish())
        self.forget()
        self.hear(0, self.publish())
        self.wrong("is at firs:1 in a and gets seco:1")

    def test_an_epoch_that_comes_back(self) -> None:
        self.model.subscribed(0, "a", None)
        first = self.publish()
        self.forget()
        self.hear(0, self.publish(), first)
        self.wrong("gets firs:1: back")

    def test_another_epoch_without_cause(self) -> None:
        self.follow()
        self.hear(0, self.publish())
        self.server["a"] = Kept(Position(OTHER, 0), [])
        self.wrong("was not forgotten")

    def test_an_epoch_that_never_was(self) -> None:
        self.follow()
        self.hear(0, Broken(Position("third", 0)))
        self.wrong("has never had the epoch third")

    def test_what_is_made_again_when_it_was_forgotten(self) -> None:
        self.follow()
        attempt = self.model.publishes("a", 0, is_kept=True)
        self.hear(0, self.takes(attempt))
        self.forget()
        self.hear(0, Broken(Position(OTHER, 0)), self.takes(attempt))
        self.model.acknowledged(attempt, Position(OTHER, 1))
        self.right()

    def test_what_is_made_again_when_it_was_answered(self) -> None:
        self.follow()
        event = self.publish()
        self.hear(0, event)
        self.forget()
        self.hear(0, Broken(Position(OTHER, 0)), self.takes(self.model.attempts[0]))
        self.wrong("is in a twice")


class Publishing(_Told):
    def test_no_answer(self) -> None:
        self.model.publishes("a", 0, is_kept=False)
        self.wrong("was never answered")

    def test_no_position(self) -> None:
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=True), None)
        self.wrong("has no position")

    def test_a_position_of_what_is_not_kept(self) -> None:
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=False), Position(EPOCH, 1))
        self.wrong("is not kept and has the position")

    def test_another_position_than_it_has(self) -> None:
        self.publish()
        attempt = self.model.publishes("a", 0, is_kept=True)
        self.takes(attempt)
        self.model.acknowledged(attempt, Position(EPOCH, 1))
        self.wrong("and was told firs:1")

    def test_acknowledged_and_never_made(self) -> None:
        self.follow(1)
        first = self.publish()
        self.hear(1, first)
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=True), _at(first))
        self.wrong("where b'a0' is, and is nowhere")

    def test_a_position_that_is_forgotten(self) -> None:
        attempt = self.model.publishes("a", 0, is_kept=True)
        self.takes(attempt)
        self.takes(self.model.publishes("a", 1, is_kept=True))
        self.server["a"].entries.clear()
        self.model.trims("a")
        self.model.acknowledged(attempt, Position(EPOCH, 2))
        self.model.failed(self.model.attempts[1], is_unknown=True)
        self.right()

    def test_acknowledged_and_not_there(self) -> None:
        self.publish()
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=True), Position(EPOCH, 2))
        self.wrong("above the top firs:1")

    def test_two_in_one_place(self) -> None:
        first = self.publish()
        attempt = self.model.publishes("a", 0, is_kept=True)
        self.hear(1, Publication(attempt.data, 1, b"", 0, offset=first.offset, epoch=first.epoch))
        self.model.failed(attempt, is_unknown=True)
        self.wrong("are both at firs:1")

    def test_one_in_two_places(self) -> None:
        attempt = self.model.publishes("a", 0, is_kept=True)
        self.takes(attempt)
        self.hear(0, self.takes(attempt))
        self.model.acknowledged(attempt, Position(EPOCH, 2))
        self.wrong("is at 2 and at 1")

    def test_acknowledged_before_what_stands_before_it(self) -> None:
        early = self.model.publishes("a", 0, is_kept=True)
        self.model.acknowledged(early, Position(EPOCH, 2))
        late = self.model.publishes("a", 1, is_kept=True)
        self.takes(late)
        self.takes(early)
        self.model.acknowledged(late, Position(EPOCH, 1))
        self.wrong("was acknowledged before b'a1' was made")

    def test_the_order_of_one_shard(self) -> None:
        one, other = (self.model.publishes("a", 0, is_kept=True) for _ in range(2))
        self.takes(other)
        self.takes(one)
        self.model.acknowledged(one, Position(EPOCH, 2))
        self.model.acknowledged(other, Position(EPOCH, 1))
        self.wrong("comes after later ones of its shard")

    def test_the_order_of_two_shards_is_free(self) -> None:
        one, other = (self.model.publishes("a", shard, is_kept=True) for shard in (0, 1))
        self.takes(other)
        self.takes(one)
        self.model.acknowledged(one, Position(EPOCH, 2))
        self.model.acknowledged(other, Position(EPOCH, 1))
        self.right()

    def test_a_key_makes_one(self) -> None:
        first = self.publish(key="k")
        self.model.acknowledged(self.model.publishes("a", 1, is_kept=True, key="k"), _at(first))
        self.right()

    def test_a_key_makes_two(self) -> None:
        self.publish(key="k")
        self.publish(1, key="k")
        self.wrong("key k: b'a0' is told firs:1, b'a1' firs:2")

    def test_a_key_makes_two_plain_ones(self) -> None:
        self.hear(0, self.publish(is_kept=False, key="k"), self.publish(is_kept=False, key="k"))
        self.wrong("were made")

    def test_a_key_is_told_another_position(self) -> None:
        self.publish()
        attempt = self.model.publishes("a", 0, is_kept=True, key="k")
        self.takes(attempt)
        self.model.acknowledged(attempt, Position(EPOCH, 1))
        self.wrong("key k: b'a1' is at {'first': 2}, b'a1' told firs:1")

    def test_keys_that_are_forgotten(self) -> None:
        self.publish(key="k")
        self.model.forgets_keys()
        self.publish(key="k")
        self.right()

    def test_versions(self) -> None:
        second = self.publish(version=2)
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=True, version=1), _at(second))
        self.publish(version=3)
        self.right()

    def test_an_old_version_is_made(self) -> None:
        self.publish(version=2)
        self.publish(version=1)
        self.wrong("has an old version")

    def test_a_new_version_is_dropped(self) -> None:
        first = self.publish(version=1)
        self.model.acknowledged(self.model.publishes("a", 0, is_kept=True, version=2), _at(first))
        self.wrong("version 2, was dropped at firs:1")


class Reading(_Told):
    def test_what_is_kept(self) -> None:
        self.read([2, 3, 4])
        self.right()

    def test_ways_to_ask(self) -> None:
        for offsets, since, limit, reverse in [
            ([], None, 0, False),
            ([2, 3], None, 2, False),
            ([4, 3], None, 2, True),
            ([4], 3, -1, False),
            ([3, 2], 4, -1, True),
            ([], 4, -1, False),
            ([], 2, 5, True),
        ]:
            self.setUp()
            self.read(offsets, since, limit, reverse)
            self.right()

    def test_a_hole(self) -> None:
        self.read([2, 4])
        self.wrong("a hole")

    def test_too_many(self) -> None:
        self.read([2, 3, 4], limit=2)
        self.wrong("too many")

    def test_nothing(self) -> None:
        self.read([])
        self.wrong("all from 2 to 4 is kept")

    def test_not_from_the_beginning(self) -> None:
        self.read([3, 4])
        self.wrong("not all from 2 up to 4")

    def test_not_up_to_the_top(self) -> None:
        self.read([2, 3])
        self.wrong("not all from 2 up to 4")

    def test_not_from_the_top(self) -> None:
        self.read([3, 2], reverse=True)
        self.wrong("not all from 4 down to 2")

    def test_not_down_to_the_beginning(self) -> None:
        self.read([4, 3], reverse=True)
        self.wrong("not all from 4 down to 2")

    def test_too_far(self) -> None:
        self.read([2, 3, 4], since=2)
        self.wrong("beyond what was asked for")

    def test_it_lacks_what_was_acknowledged(self) -> None:
        self.publish()
        self.model.read(self.model.asks(), "a", None, 0, False, Stream(Position(EPOCH, 0), []))
        self.wrong("was acknowledged before")

    def test_it_may_lack_what_comes_meanwhile(self) -> None:
        self.publish()
        asked = self.model.asks()
        self.publish()
        self.model.read(asked, "a", None, 0, False, Stream(Position(EPOCH, 1), []))
        self.right()

    def test_an_epoch_that_was_forgotten_before(self) -> None:
        self.publish()
        self.model.forgets("a", EPOCH)
        self.server["a"] = Kept(Position(OTHER, 0), [])
        self.publish()
        self.model.read(self.model.asks(), "a", None, 0, False, Stream(Position(EPOCH, 1), []))
        self.wrong("was acknowledged before")

    def test_something_else(self) -> None:
        first = self.publish()
        other = self.model.publishes("a", 0, is_kept=True)
        found = Publication(other.data, 1, b"", 0, offset=1, epoch=EPOCH)
        self.model.read(self.model.asks(), "a", None, -1, False, Stream(_at(first), [found]))
        self.model.failed(other, is_unknown=True)
        self.wrong("are both at firs:1")

    def test_the_epoch_of_an_entry(self) -> None:
        first = self.publish()
        found = Publication(first.data, 1, b"", 0, offset=1, epoch=OTHER)
        self.model.read(self.model.asks(), "a", None, -1, False, Stream(_at(first), [found]))
        self.wrong("is not its epoch")


class Keeping(_Told):
    """What the server has when all is settled."""

    def test_too_much(self) -> None:
        for _ in range(4):
            self.publish()
        self.server["a"].entries.insert(0, (1, b"a0"))
        self.wrong("a keeps 4")

    def test_too_little(self) -> None:
        for _ in range(4):
            self.publish()
        del self.server["a"].entries[0]
        self.wrong("not all from 2 on")

    def test_a_hole(self) -> None:
        for _ in range(4):
            self.publish()
        del self.server["a"].entries[1]
        self.wrong("keeps [2, 4] below its top")


class Shown(SynchronousTestCase):
    def test_actions(self) -> None:
        self.assertEqual(shown([1, "x"]), "    1,\n    'x',")


def _at(publication: Publication) -> Position:
    return Position(publication.epoch, publication.offset)
