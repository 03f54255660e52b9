"""Every error that dreamgym raises on purpose: expected, actual and the fix are in the message."""


class DreamgymError(Exception):
    """Base of all errors raised by dreamgym."""


class UnknownGameError(DreamgymError):
    """A game or environment id that nobody registered; the message lists the nearest names."""


class MissingWeightsError(DreamgymError, FileNotFoundError):
    """No trained dream was found; the message says where it was looked for and how to train one."""

    def __str__(self) -> str:
        """The message alone: FileNotFoundError would format it as an errno pair."""
        return str(self.args[0]) if self.args else ""


class CheckpointError(DreamgymError):
    """A checkpoint that is damaged, of a newer format, or not ours."""


class ConfigError(DreamgymError, ValueError):
    """A setting outside its range, or two settings that contradict each other."""


class UnknownSettingError(ConfigError, TypeError):
    """A setting that there is not.

    A ``TypeError``, too, as from any Python call: libraries that try settings out (TorchRL's ``GymEnv``) look for it.
    """


class DeviceError(DreamgymError):
    """A device that was asked for and is not there."""


class InvalidActionError(DreamgymError, ValueError):
    """Actions of the wrong shape, type or range."""


class InvalidInputError(DreamgymError, ValueError):
    """An argument of the wrong shape, type or range."""


class HubError(DreamgymError):
    """A model hub that cannot be reached, or that sent something else than was asked for."""


class ReplayError(DreamgymError):
    """A replay buffer that cannot serve a request, or whose files are damaged."""


class SickRunError(DreamgymError):
    """Training that went wrong; the message says what was seen, what was expected, and how to go on."""


class RunInUseError(DreamgymError):
    """A run folder that another process works on; the message names it and its host."""


class StorageError(DreamgymError, OSError):
    """A disk that is full, a folder that cannot be written: the message says what to mend and how to go on."""

    def __str__(self) -> str:
        """The message alone: OSError would format it as an errno pair."""
        return str(self.args[0]) if self.args else ""
