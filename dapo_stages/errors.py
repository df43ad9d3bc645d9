"""The one tree of errors. Each message says where, what is wrong (what was expected and found), and what to do."""

from __future__ import annotations

import errno

EXIT_LOST = 1
EXIT_BAD_INPUT = 3
EXIT_LOCKED = 4
EXIT_HALTED = 5
EXIT_INTERRUPTED = 130


class DapoStagesError(Exception):
    """Base of every error that a user can cause or fix; the CLI prints it without a traceback."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(DapoStagesError):
    """The configuration file or an override is not valid."""


class DataError(DapoStagesError):
    """A file or a row is missing, damaged, or not what the stage needs.

    where: the file, row, key or command that is wrong.
    problem: what is wrong, with what was expected and what was found; no capital, no full stop.
    advice: what to do about it, in full sentences.
    """

    def __init__(self, where: object, problem: str, advice: str) -> None:
        self.where, self.problem, self.advice = str(where), problem, advice
        super().__init__(f"{where}: {problem}. {advice}")


class ModelError(DapoStagesError):
    """A checkpoint cannot be used for what was asked of it."""


class EngineError(DataError):
    """The generation engine cannot be reached, failed, or returned less than was asked for."""


class HaltedError(DataError):
    """Training diverged and stopped: nothing is published, and the previous policy stays the latest one."""

    exit_code = EXIT_HALTED


class HubError(DapoStagesError):
    """The hub cannot be reached, or rejected an upload."""


class LockedError(DapoStagesError):
    """Another run is writing the same output folder."""

    exit_code = EXIT_LOCKED


class RankError(DapoStagesError):
    """A process of a stage that runs in several is missing."""

    exit_code = EXIT_LOST


class PeerError(DapoStagesError):
    """Another process of this stage failed, and this one ends with it. The other one prints the reason."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedStage(BaseException):
    """SIGTERM, Ctrl-C or the end of another process. It can be raised at any line, and no error handler may catch it.

    Finished work stays, and the same command resumes from there.
    """

    def __init__(self, message: str, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def fixable(error: Exception) -> str | None:
    """The message for a system error that the user can fix; None for other errors."""
    if isinstance(error, OSError) and error.errno in _FIXABLE:
        where = error.filename2 or error.filename or "writing"  # the second: the target of a copy or rename
        return f"{where}: {_FIXABLE[error.errno]}, then run the command again."
    if isinstance(error, UnicodeEncodeError) and not error.encoding.startswith("utf"):
        return (
            f"{error.object[:200]!a}: has characters that the locale's encoding {error.encoding} lacks. Set "
            "PYTHONUTF8=1, or LC_ALL=C.UTF-8, then run the command again."
        )
    return None


# What is wrong, and what to do about it.
_FIXABLE = {
    errno.ENOSPC: "no space left on the disk. Free some",
    errno.EDQUOT: "the disk quota is exhausted. Free some space",
    errno.EFBIG: "the file exceeds the limit on file sizes (ulimit -f). Raise the limit",
    errno.EACCES: "no permission to read or write here. Grant it",
    errno.EPERM: "no permission to read or write here. Grant it",
    errno.EROFS: "the file system is read-only. Choose another place",
    errno.EISDIR: "expected a file, got a folder. Choose another place",
}
