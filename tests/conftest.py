"""What all tests share."""

from __future__ import annotations

import signal

from hypothesis import settings

# An example that takes long says that the machine is busy, and nothing about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# A script that runs the tests with `&` has them ignore Ctrl-C, as all programs that they start would then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
