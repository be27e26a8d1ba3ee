"""The exceptions that are evidens' own."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve the call; the message says why."""
