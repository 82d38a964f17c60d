"""A shard as the parent of a fleet sees one, without Twisted and without a hub: a program of its own.

``fake_shard.py --shard N`` listens on the sockets it inherits, prints ``ready shard=N``, answers each line
of a client with ``SERVICE N PID``, and ends with 0 on SIGTERM or when its life line (descriptor 0) ends,
after its clients have left. What else it shall do stands in the file ``N`` of the directory
``FAKE_ORDERS``, read at the start:

    exit CODE      end before being ready
    mute           never be ready
    deaf           ignore SIGTERM
    fail CODE      end with CODE on SIGTERM
    chatter        print a very long line before, and half a line at the end
    leave          leave a process behind that holds the output, and end with 1
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

LEAVE_SECONDS = 2.0


def orders(shard: int) -> list[str]:
    try:
        with open(os.path.join(os.environ["FAKE_ORDERS"], str(shard))) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def say(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()


def main() -> int:
    shard = int(sys.argv[sys.argv.index("--shard") + 1])
    order, *argument = [*orders(shard), "serve"]
    if order == "exit":
        return int(argument[0])
    if order == "leave":
        # Ends with the life line, which it inherits.
        subprocess.Popen(["cat"])
        return 1

    selector = selectors.DefaultSelector()
    asked, wake = socket.socketpair()
    for end in (asked, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, signal.SIG_IGN if order == "deaf" else lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    selector.register(asked, selectors.EVENT_READ, "signal")
    selector.register(int(os.environ["SPREAD_FLEET_LIFELINE"]), selectors.EVENT_READ, "life line")

    listening = []
    addresses = ""
    for entry in filter(None, os.environ["SPREAD_FLEET_SOCKETS"].split(",")):
        service, _, fd = entry.partition("=")
        sock = socket.socket(fileno=int(fd))
        sock.listen(128)
        selector.register(sock, selectors.EVENT_READ, ("listen", service))
        listening.append(sock)
        host, port = sock.getsockname()[:2]
        addresses += f" {service}={host}:{port}"
    if order == "chatter":
        say("x" * 100_000 + "\n")
    if order != "mute":
        say(f"ready shard={shard}{addresses}\n")

    clients: set[socket.socket] = set()
    deadline = None
    while deadline is None or (clients and time.monotonic() < deadline):
        for key, _ in selector.select(0.05 if deadline else None):
            if key.data in ("signal", "life line"):
                selector.unregister(key.fileobj)
                if deadline is None:
                    deadline = time.monotonic() + LEAVE_SECONDS
                    for sock in listening:
                        selector.unregister(sock)
                        sock.close()
            elif key.data[0] == "listen":
                # The queue may be empty again, or have been closed in this very turn.
                try:
                    client, _ = key.fileobj.accept()
                except OSError:
                    continue
                clients.add(client)
                selector.register(client, selectors.EVENT_READ, ("client", key.data[1]))
            else:
                client = key.fileobj
                try:
                    line = client.recv(1000)
                except OSError:
                    line = b""
                if line:
                    client.sendall(f"{key.data[1]} {shard} {os.getpid()}\n".encode())
                else:
                    selector.unregister(client)
                    clients.discard(client)
                    client.close()
    if order == "chatter":
        say("the end")
    return int(argument[0]) if order == "fail" else 0


if __name__ == "__main__":
    sys.exit(main())
