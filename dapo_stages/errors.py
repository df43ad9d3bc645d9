"""The one tree of errors. Each message says where, what is wrong (what was expected and found), and what to do."""

from __future__ import annotations

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
