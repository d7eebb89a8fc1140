"""Every error that kshot raises on purpose.

KshotError                    exit 1
├── UserError                 exit 2: the request cannot be met as given
│   ├── ConfigError           a setting is unknown, missing, mistyped or out of range
│   ├── DataError             a dataset, image, archive or class split is not usable
│   │   ├── ValidationError   the validate stage found critical failures
│   │   └── UnknownColumnsError  no column of a table names pictures
│   ├── EpisodeError          an episode of this shape cannot be built or adapted to
│   ├── ModelError            a model cannot be found, read or used with this input
│   ├── UnknownNameError      a service has no such gallery, class or example
│   └── RefusedError          a service refuses what its client asks
├── CheckpointError           exit 1: no intact checkpoint where one was expected
├── TrainingError             exit 1: meta-training cannot go on (NaN loss, lost worker)
└── StageError                exit 1: a pipeline stage or an outside command failed
    ├── TransientStageError   exit 1: it may pass by itself: killed from outside, a network or lock time-out
    └── RejectedStageError    exit 2: the stage refused its input or settings; running it again changes nothing

A message states the value found, the value needed and, where there is one, the next command.
"""


class KshotError(Exception):
    exit_code = 1


class UserError(KshotError):
    exit_code = 2


class ConfigError(UserError, ValueError):
    pass


class DataError(UserError, ValueError):
    pass


class ValidationError(DataError):
    pass


class UnknownColumnsError(DataError):
    pass


class EpisodeError(UserError, ValueError):
    pass


class ModelError(UserError, ValueError):
    pass


class UnknownNameError(UserError):
    pass


class RefusedError(UserError):
    """`status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CheckpointError(KshotError):
    pass


class TrainingError(KshotError, RuntimeError):
    pass


class StageError(KshotError, RuntimeError):
    pass


class TransientStageError(StageError):
    pass


class RejectedStageError(StageError):
    exit_code = 2
