"""The adversary: strikes of every kind in turn until the time is up, and what came of them.

A strike is one attack with random numbers of its own, which depend on the seed, the kind and the number of the strike
alone. So a strike is repeated without the others: `--only KIND --strike NUMBER`.
"""

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

FAULTS = ("differences", "tracebacks", "hangs", "lost", "other")
"""What a strike may find, as the columns of the table."""


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept: one of `FAULTS`, and what exactly was seen."""

    fault: str
    text: str


@dataclass
class Report:
    """What a strike, or all strikes of a kind, came to.

    Attributes:
        attacks: how many attacks there were: kills, rows, files, requests.
        outcomes: what became of them, by word.
        violations: promises that were not kept.
    """

    attacks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def note(self, outcome: str, number: int = 1) -> None:
        """Count an outcome."""
        self.outcomes[outcome] += number

    def violation(self, fault: str, text: str) -> None:
        """Record a promise that was not kept."""
        if fault not in FAULTS:
            raise ValueError(f"{fault} is none of {FAULTS}")
        self.violations.append(Violation(fault, text))

    def add(self, other: "Report") -> None:
        """Add what another report has."""
        self.attacks += other.attacks
        self.outcomes += other.outcomes
        self.violations += other.violations


class Attack(Protocol):
    """A kind of attack. `weight` is its share of the time, relative to the others."""

    weight: float

    def strike(self, draw: random.Random, report: Report) -> None:
        """Attack once, or a batch of times."""

    def close(self) -> None:
        """Release what the strikes share."""


class Adversary:
    """Runs strikes of `attacks` (by kind) on two threads.

    Args:
        attacks: by kind.
        seed: of all random numbers.
        print_line: prints a line; called from several threads.
        repeat: the command that repeats a strike, given its kind and number.
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        seed: int,
        print_line: Callable[[str], None],
        repeat: Callable[[str, int], str],
    ) -> None:
        self.attacks, self.seed, self._print_line, self._repeat = attacks, seed, print_line, repeat
        self.reports = {kind: Report() for kind in attacks}
        self.strikes = Counter(dict.fromkeys(attacks, 0))
        self._spent = dict.fromkeys(attacks, 0.0)
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._stop = False

    def run(self, seconds: float, workers: int = 2) -> None:
        """Strike until `seconds` are over, and every kind at least once."""
        deadline = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(deadline,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._print_line("stopping after the strikes that are under way")
            self._stop = True
            for thread in threads:
                thread.join()
        for attack in self.attacks.values():
            attack.close()

    def strike(self, kind: str, number: int) -> Report:
        """Strike `number` of `kind`; an error of the adversary itself is a violation as well."""
        report = Report()
        try:
            self.attacks[kind].strike(random.Random(f"{self.seed}:{kind}:{number}"), report)
        except Exception:  # noqa: BLE001 - one broken strike must not end the others
            report.violation("other", f"the adversary failed: {traceback.format_exc()[-3000:]}")
        with self._lock:
            self.reports[kind].add(report)
            self.strikes[kind] += 1
        for violation in report.violations:
            self._print_line(f"{kind} {violation.fault}: {violation.text}\n  repeat it: {self._repeat(kind, number)}")
        return report

    @property
    def violations(self) -> int:
        """How many promises were not kept."""
        return sum(len(report.violations) for report in self.reports.values())

    def table(self) -> str:
        """The counts as a Markdown table."""
        heads = ["kind", "strikes", "attacks", *FAULTS, "what became of them"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for kind, report in self.reports.items():
            faults = Counter(violation.fault for violation in report.violations)
            outcomes = ", ".join(f"{count:,} {word}" for word, count in report.outcomes.most_common())
            cells = [kind, str(self.strikes[kind]), f"{report.attacks:,}", *(str(faults[fault]) for fault in FAULTS)]
            lines.append(f"| {' | '.join([*cells, outcomes])} |")
        return "\n".join(lines)

    def _work(self, deadline: float) -> None:
        while (task := self._take(deadline)) is not None:
            kind, number = task
            started = time.monotonic()
            report = self.strike(kind, number)
            with self._lock:
                self._spent[kind] += time.monotonic() - started
                self._busy.discard(kind)
            self._print_line(f"{kind} {number}: {report.attacks:,} attacks, {time.monotonic() - started:.0f} s")

    def _take(self, deadline: float) -> tuple[str, int] | None:
        """The next kind and the number of its strike; None when the time is up and every kind has had a strike.

        That kind is next which has used least of its share. A strike that would not end in time is not begun.
        """
        while not self._stop:
            with self._lock:
                left = deadline - time.monotonic()
                due = [kind for kind in self.attacks if not self.strikes[kind] or self._typical(kind) < left]
                free = [kind for kind in due if kind not in self._busy]
                if free:
                    kind = min(free, key=lambda each: self._spent[each] / self.attacks[each].weight)
                    self._busy.add(kind)
                    return kind, self.strikes[kind]
                # What is due may be under way on the other thread for the first time.
                waiting = left > 0 and bool(due)
            if not waiting:
                return None
            time.sleep(0.2)
        return None

    def _typical(self, kind: str) -> float:
        """Seconds that a strike of a kind has taken on average."""
        return self._spent[kind] / max(1, self.strikes[kind])
