"""Publishers over the HTTP API, a thread each: what fails is tried again with the same idempotency key, at
the next shard, until it is acknowledged. See witnesses.py for the commands, ledger.py for the lines."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from tests.live.faults.record import FLUSH_SECONDS, Record, answer

TIMEOUT_SECONDS = 8.0
AGAIN_SECONDS = 0.2
GIVE_UP_SECONDS = 60.0


class Refused(Exception):
    """The API answered with an error."""

    def __init__(self, code: object) -> None:
        super().__init__(code)
        self.code = code


class Publisher(threading.Thread):
    def __init__(self, record: Record, lock: threading.Lock, options: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._record = record
        self._lock = lock
        self._who: str = options["who"]
        self._channel: str = options["channel"]
        self._interval: float = options["interval"]
        self._ports = [urlsplit(endpoint).port for endpoint in options["endpoints"]]
        self._key: str = options["key"]
        self._at = 0
        self.is_on = True

    def _note(self, *line: Any) -> None:
        with self._lock:
            self._record.note(*line)

    def run(self) -> None:
        sequence = 0
        while self.is_on:
            time.sleep(self._interval * random.uniform(0.5, 1.5))
            if self.is_on:
                sequence += 1
                self._note("P", self._who, sequence)
                self._publish(sequence)

    def _publish(self, sequence: int) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                epoch, offset = self._asked(sequence)
            except (OSError, http.client.HTTPException, Refused, ValueError) as error:
                code = error.code if isinstance(error, Refused) else type(error).__name__
                if time.monotonic() > deadline:
                    self._note("F", self._who, sequence, code)
                    return
                self._note("R", self._who, sequence, code)
                self._at = (self._at + 1) % len(self._ports)
                time.sleep(AGAIN_SECONDS)
            else:
                self._note("A", self._who, sequence, epoch, offset)
                return

    def _asked(self, sequence: int) -> tuple[str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[self._at], timeout=TIMEOUT_SECONDS)
        try:
            body = {
                "channel": self._channel,
                "data": [self._who, sequence],
                "idempotency_key": f"{self._who}-{sequence}",
            }
            headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
            connection.request("POST", "/api/publish", json.dumps(body), headers)
            reply = connection.getresponse()
            told = reply.read()
        finally:
            connection.close()
        if reply.status != http.client.OK:
            raise Refused(f"HTTP-{reply.status}")
        found = json.loads(told)
        if "error" in found:
            raise Refused(found["error"]["code"])
        return found["result"]["epoch"], found["result"]["offset"]


def main(path: str) -> None:
    record, lock = Record(path), threading.Lock()
    publishers: list[Publisher] = []

    def flush() -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            with lock:
                record.flush()

    threading.Thread(target=flush, daemon=True).start()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "open":
            publishers += [Publisher(record, lock, options) for options in command["clients"]]
        elif command["do"] == "publish":
            for publisher in publishers:
                publisher.start()
        else:
            for publisher in publishers:
                publisher.is_on = False
            for publisher in publishers:
                publisher.join()
        with lock:
            record.flush()
        answer(command["n"])


if __name__ == "__main__":
    main(sys.argv[1])
