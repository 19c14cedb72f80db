"""Error messages and exit codes of exceptions."""

import errno
import os

from e3d_deploy.errors import BackendUnavailable, ConfigError, E3DError, ResourceLimit

REMEDIES = {
    errno.ENOENT: (ConfigError.exit_code, "give the path of an existing file or folder"),
    errno.ENOTDIR: (ConfigError.exit_code, "give a path whose parents are folders"),
    errno.EISDIR: (ConfigError.exit_code, "give the path of a file"),
    errno.ENAMETOOLONG: (ConfigError.exit_code, "give a shorter name"),
    errno.ELOOP: (ConfigError.exit_code, "give a path without a loop of symbolic links"),
    errno.EACCES: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EPERM: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EROFS: (ConfigError.exit_code, "give a path on a writable disk"),
    errno.ENOSPC: (ResourceLimit.exit_code, "free space, or write to another disk"),
    errno.EDQUOT: (ResourceLimit.exit_code, "free space, or write to another disk"),
    errno.EFBIG: (ResourceLimit.exit_code, "raise the limit on file sizes (`ulimit -f`), or write elsewhere"),
    errno.EMFILE: (ResourceLimit.exit_code, "raise the limit on open files (`ulimit -n`)"),
    errno.ENFILE: (ResourceLimit.exit_code, "close other programs, or raise the system's limit on open files"),
    errno.EIO: (1, "check the disk or device, or use another copy of the file"),
}
"""Exit codes and remedies by the error number of the operating system."""


def explain(error: Exception) -> tuple[str, int]:
    """Return the error message and the exit code of an exception."""
    if isinstance(error, E3DError):
        return (str(error), error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        from e3d_deploy.libraries import extra_of, pip_install

        if extra := extra_of(error.name or ""):
            return (f"{error.name} is not installed; {pip_install(extra)}", BackendUnavailable.exit_code)
    said = str(error).partition("\n")[0]  # PyTorch appends a C++ stack trace
    from e3d_deploy.runtime.faults import translated

    if isinstance(translated(error), ResourceLimit):
        return (f"out of memory ({said}); use a smaller batch or model", ResourceLimit.exit_code)
    if isinstance(error, OSError):
        return system_error(error)
    return (f"unexpected {type(error).__name__}: {said}; run `e3d --debug …` to see the traceback", 1)


def system_error(error: OSError) -> tuple[str, int]:
    """Return the error message and the exit code of an error of the operating system."""
    code, remedy = REMEDIES.get(
        error.errno or 0, (1, "check that the file or device can be read and written, and try again")
    )
    name = error.filename
    if isinstance(name, int):
        name = f"descriptor {name}"
    elif isinstance(name, bytes):
        name = os.fsdecode(name)
    said = str(error.strerror or error)
    # Messages of the system contain no semicolon. A message with a semicolon is from this package
    # and already ends with a remedy.
    return f"{name or 'a file or device'}: {said if '; ' in said else f'{said}; {remedy}'}", code
