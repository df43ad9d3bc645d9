"""The one tree of errors: what was found, what is needed, and what to do next."""

from __future__ import annotations

EXIT_LOST = 1
EXIT_BAD_INPUT = 3
EXIT_LOCKED = 4
EXIT_HALTED = 5
EXIT_INTERRUPTED = 130


class DapoStagesError(Exception):
    """Base of every error that a user can cause or mend; the CLI prints it without a traceback."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(DapoStagesError):
    """The configuration file or an override is not valid."""


class DataError(DapoStagesError):
    """A file or a row is missing, damaged, or not what the stage needs.

    The message always has the same four parts, so that nobody has to guess:
    which file, what was found there, what is needed, and what to do next.
    """

    def __init__(self, where: object, found: str, needed: str, do: str) -> None:
        self.where, self.found, self.needed, self.do = str(where), found, needed, do
        super().__init__(f"{where}: found {found}; needed {needed}. {do}")


class ModelError(DapoStagesError):
    """A checkpoint cannot be used for what was asked of it."""


class EngineError(DataError):
    """What generates completions cannot be reached, failed, or gave less than is needed."""


class HaltedError(DataError):
    """Training has blown up and goes no further: nothing is published, the policy before stays the last one."""

    exit_code = EXIT_HALTED


class HubError(DapoStagesError):
    """The hub cannot be reached, or does not take what is sent."""


class LockedError(DapoStagesError):
    """Another run is writing the same output folder."""

    exit_code = EXIT_LOCKED


class RankError(DapoStagesError):
    """A process of a stage that runs in several is missing."""

    exit_code = EXIT_LOST


class PeerError(DapoStagesError):
    """Another process of this stage has failed; this one ends with it. The other one says why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedStage(BaseException):
    """SIGTERM, Ctrl-C or the end of another process, at any line: nothing that handles errors may hold it up.

    What is finished stays, and the same command carries on from there.
    """

    def __init__(self, message: str, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
