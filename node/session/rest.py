"""What a text client had said when its connection ended, and had not been worked on yet.

It is published as if the client were still there: message by message, so that none overtakes another, to the
channel that each was meant for. What the client may not, it may not now: where the team's code had not said
yet whether it may be there, that is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.hub.api import Format
from spread.node.limits import Rate
from spread.node.session.logic import Admitted, Party
from spread.node.session.shared import Refused
from spread.node.session.surroundings import Surroundings
from spread.node.wire.text import Join, Say, channel_name, parse

__all__ = ["Speaker", "identify", "may_enter", "say_rest"]


class Speaker(Party, Protocol):
    """A session of the text protocol."""

    def known_as(self, admitted: Admitted) -> None:
        """The team's code has said who it is."""


async def identify(session: Speaker, shared: Surroundings) -> None:
    """Ask the team's code who this is, and whether it may come into its first channel.

    :raises Refused: it may not; or ``Ended``.
    """
    logic = shared.logic
    if logic is not None and logic.connecting is not None:
        answer = logic.connecting(session)
        admitted = await answer if isinstance(answer, Deferred) else answer
        if admitted is not None:
            session.known_as(admitted)
    await may_enter(session, shared, shared.text.channel)


async def may_enter(session: Speaker, shared: Surroundings, channel: str) -> None:
    """:raises Refused: the team's code keeps it out; or ``Ended``."""
    if shared.logic is not None and shared.logic.subscribing is not None:
        answer = shared.logic.subscribing(session, channel)
        if isinstance(answer, Deferred):
            await answer


async def say_rest(
    session: Speaker,
    shared: Surroundings,
    said: Iterable[bytes],
    *,
    here: str,
    joining: str | None,
    is_admitted: bool,
    saying: Deferred[bool] | None,
    rate: Rate | None,
    lost: Callable[[Failure], None],
) -> None:
    """Publish it.

    :param here: the channel it was in.
    :param joining: the one it was on its way into.
    :param is_admitted: the team's code had nothing against that; without ``joining``, against its being here.
    :param saying: the message that the team's code still thinks about: gives whether others may follow.
    :param lost: told of each message that could not be published.
    :raises Refused: it may not be here at all; or ``Ended``, which one of the messages may be answered with.
    """
    if saying is not None and not await saying:
        return
    name = joining or here
    if not is_admitted:
        if joining is None:
            await identify(session, shared)
        elif not await _may_be_in(session, shared, joining):
            name = here
    for message in said:
        command = parse(message)
        if isinstance(command, Say):
            shared.counters.messages_in += 1
            if rate is not None and not rate.take(shared.clock.seconds()):
                shared.counters.rate_limited += 1
                continue
            await _say(session, shared, name, command.data, lost)
        elif isinstance(command, Join):
            wanted = channel_name(command.name)
            if wanted is None or not shared.is_open(wanted):
                continue
            if await _may_be_in(session, shared, wanted):
                name = wanted
        else:
            break


async def _may_be_in(session: Speaker, shared: Surroundings, channel: str) -> bool:
    try:
        await may_enter(session, shared, channel)
    except Refused:
        return False
    return True


async def _say(
    session: Speaker, shared: Surroundings, channel: str, data: bytes, lost: Callable[[Failure], None]
) -> None:
    chosen: tuple[bytes, Format] | None = (data, Format.TEXT)
    if shared.logic is not None and shared.logic.publishing is not None:
        try:
            answer = shared.logic.publishing(session, channel, data, Format.TEXT)
            chosen = await answer if isinstance(answer, Deferred) else answer
        except Refused:
            lost(Failure())
            return
    if chosen is not None:
        # Handed over in this order, it is published so: none waits for the one before.
        shared.hub.publish(channel, *chosen, 0, shared.publishing_in(channel)).addErrback(lost)
