"""Failures as the line and the exit code that a user gets."""

import errno
import os

from e3d_deploy.errors import BackendUnavailable, ConfigError, E3DError, ResourceLimit

REMEDIES = {
    errno.ENOENT: (ConfigError.exit_code, "give the path of a file or folder that is there"),
    errno.ENOTDIR: (ConfigError.exit_code, "give a path whose folders are folders"),
    errno.EISDIR: (ConfigError.exit_code, "give the name of a file"),
    errno.ENAMETOOLONG: (ConfigError.exit_code, "give a shorter name"),
    errno.ELOOP: (ConfigError.exit_code, "give a path that is no link to itself"),
    errno.EACCES: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EPERM: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EROFS: (ConfigError.exit_code, "give a path on a disk that can be written"),
    errno.ENOSPC: (ResourceLimit.exit_code, "make room, or write to another disk"),
    errno.EDQUOT: (ResourceLimit.exit_code, "make room, or write to another disk"),
    errno.EFBIG: (ResourceLimit.exit_code, "raise the limit on the size of files (`ulimit -f`), or write elsewhere"),
    errno.EMFILE: (ResourceLimit.exit_code, "raise the limit on open files (`ulimit -n`)"),
    errno.ENFILE: (ResourceLimit.exit_code, "close other programs, or raise the system's limit on open files"),
    errno.EIO: (1, "check the disk or device, or copy the file from another place"),
}
"""Exit code and remedy by error number of the system."""


def explain(error: Exception) -> tuple[str, int]:
    """An exception as the line and exit code that a user gets."""
    if isinstance(error, E3DError):
        return (str(error), error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        from e3d_deploy.libraries import extra_of, pip_install

        if extra := extra_of(error.name or ""):
            return (f"{error.name} is not installed; {pip_install(extra)}", BackendUnavailable.exit_code)
    said = str(error).partition("\n")[0]  # PyTorch appends a stack of C++
    from e3d_deploy.runtime.faults import clear

    if isinstance(clear(error), ResourceLimit):
        return (f"out of memory ({said}); take a smaller batch or model", ResourceLimit.exit_code)
    if isinstance(error, OSError):
        return system_error(error)
    return (f"unexpected {type(error).__name__}: {said}; `e3d --debug …` shows where", 1)


def system_error(error: OSError) -> tuple[str, int]:
    """Return the line and exit code of an error of the operating system."""
    code, remedy = REMEDIES.get(error.errno or 0, (1, "see whether it can be read and written, and try again"))
    name = error.filename
    if isinstance(name, int):
        name = f"descriptor {name}"
    elif isinstance(name, bytes):
        name = os.fsdecode(name)
    said = str(error.strerror or error)
    # The system's own words hold no semicolon: with one, the error is ours and says already what to do.
    return f"{name or 'a file or device'}: {said if '; ' in said else f'{said}; {remedy}'}", code
