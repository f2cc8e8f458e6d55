"""Files that are mapped into memory: features, encoders, and data sets of the library `datasets`.

If such a file is cut short, or its disk is gone, touching it is no error that Python sees: the
system sends SIGBUS, which ends the process without a word. Here it ends with a line.
"""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 2
_WITH_ADDRESS = 4  # SA_SIGINFO of Linux: the handler gets the address
_ADDRESS = 16  # the place of the address in Linux's siginfo_t, in bytes
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of Linux with 64 bits."""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_kept: list[_Action] = []  # the system calls it: it must not be freed


def end_with_a_line(say: Callable[[str], None]) -> None:
    """Let SIGBUS end this process with EXIT_CODE, after a line that names the file (Linux).

    Python's own handlers run after the instruction that failed, and it would fail again for ever;
    so this one is called by the system itself.
    Args:
        say: prints the line.
    """
    if sys.platform != "linux" or sys.maxsize < 2**32 or faulthandler.is_enabled():
        return

    first = threading.Lock()

    def end(number: int, about: int, _context: int) -> None:
        while not first.acquire(blocking=False):  # several threads compute with one file
            time.sleep(1)
        try:
            file = _file_at(ctypes.c_size_t.from_address(about + _ADDRESS).value)
            say(
                f"'{file}' was cut short, or its disk cannot be read any more, while this command "
                f"read it. Restore it, or remove it if it can be made again, and run the same "
                f"command again"
            )
        finally:
            os._exit(EXIT_CODE)

    action = _Action(_HANDLER(end), flags=_WITH_ADDRESS)
    if ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0:
        _kept.append(action)


def _file_at(address: int) -> str:
    """The file that is mapped at an address."""
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split(maxsplit=5)
            first, _, last = words[0].partition("-")
            if int(first, 16) <= address < int(last, 16) and len(words) == 6:
                return words[5].strip().removesuffix(" (deleted)")
    return "memory"
