"""Two names exchanged in one call of the system, so that there is no moment in which one of them is missing."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

# renameat2(2) of Linux and renameatx_np(2) of macOS take the same arguments.
_CALLS = {"linux": ("renameat2", -100, 2), "darwin": ("renameatx_np", -2, 2)}
# The system or the file system knows no exchange.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


def exchange(first: Path, second: Path) -> bool:
    """Exchange what two names stand for, files or folders on one disk; False where the system cannot.

    Raises:
        OSError: it could, and failed.
    """
    name, here, swap = _CALLS.get(sys.platform, ("", 0, 0))
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(here, os.fsencode(first), here, os.fsencode(second), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
