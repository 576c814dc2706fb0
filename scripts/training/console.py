"""What a person sees of a run on the terminal while its ranks work."""

from typing import Any

from scripts.common.progress import Progress, write_over


class ConsoleReporter:
    """Shows the messages of rank 0 on the terminal: log lines, and the progress of the run `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Progress | None = None

    def show(self, message: dict[str, Any]) -> None:
        """Show one message."""
        if "log" in message:
            write_over(f"{self._name}: {message['log']}")
        elif "steps" in message:
            self._progress = Progress(f"training {self._name}", message["steps"], message["done"])
        elif self._progress:
            self._progress.advance(note=message["note"])

    def close(self) -> None:
        """Finish the progress bar."""
        if self._progress:
            self._progress.close()
