"""Why a model can't be exported, in words for whoever asked for it."""


class Refused(Exception):
    """Final: to try again changes nothing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
