"""The ways in which a run ends before it is complete, in words for whoever started it."""


class Failure(Exception):
    """Final: trying again would end the same way. `code` is one of those that the frame `Failed` has."""

    def __init__(self, code: str, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.step = step


class Unreachable(Failure):
    """Another time it might not end so, but nobody waits for that."""


class Stop(Exception):
    """Somebody wants the run to end."""


def ran_out_of_memory(error: BaseException) -> bool:
    """PyTorch says it in three ways: its own class, a plain RuntimeError of the CPU's allocator, and one of cuBLAS. Told without importing it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text)


def plain(text: str) -> str:
    """Fit to be stored: no NUL, no lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\u2400")
