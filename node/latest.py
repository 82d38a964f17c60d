"""Which of the frames that wait for a slow client may be replaced by newer ones.

The frames are those of an outbox, which takes them from the front as the client reads. Where one was
replaced an empty one stays, so that the others need not move; they are taken out when they are the most.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Latest"]

SPARE = 64
"""Empty frames, and keys of frames that were sent, that are not worth tidying up."""


class Latest:
    """The frames of one outbox that have a key."""

    __slots__ = ("_at", "_empty")

    def __init__(self) -> None:
        # By key: where it was in the list when it was put there, and the frame. Frames may have been taken
        # from the front since; where it is now is looked up when it is not there.
        self._at: dict[Hashable, tuple[int, bytes]] = {}
        self._empty = 0

    def replace(self, frames: list[bytes | memoryview], key: Hashable, frame: bytes) -> int:
        """Take out the one of that key that waits; gives its bytes, 0 if there is none.

        :param frame: the next to be appended to ``frames``.
        """
        at = self._at
        known = at.get(key)
        if known is not None and not (known[0] < len(frames) and frames[known[0]] is known[1]):
            self._tidy(frames)
            known = at.get(key)
        freed = 0
        if known is not None:
            freed = len(known[1])
            frames[known[0]] = b""
            self._empty += 1
        is_holey = self._empty > SPARE and self._empty * 2 > len(frames)
        if is_holey or len(at) > len(frames) * 2 + SPARE:
            self._tidy(frames)
        at[key] = (len(frames), frame)
        return freed

    def _tidy(self, frames: list[bytes | memoryview]) -> None:
        """Forget what was sent, take out what is empty, and look up where the others are."""
        frames[:] = [frame for frame in frames if frame]
        self._empty = 0
        place = {id(frame): index for index, frame in enumerate(frames)}
        there = [(key, place.get(id(frame)), frame) for key, (_, frame) in self._at.items()]
        self._at.clear()
        self._at.update({key: (index, frame) for key, index, frame in there if index is not None})
