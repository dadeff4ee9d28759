"""How long a training takes: its steps and evaluations, the time that remains, and the time limit of one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_MARGIN = 1.1  # evaluations of one run differ a little


class Pace:
    """Seconds per step and per evaluation, as far as they are known.

    step_s: exponential moving average, weight 0.1 for the latest step; None before the first. evaluation_s: of the last
    evaluation; None before the first.
    """

    def __init__(self, step_s: Sequence[float] = (), evaluation_s: float | None = None) -> None:
        """step_s, evaluation_s: the last steps and the last evaluation before a resume."""
        self.step_s = sum(step_s) / len(step_s) if step_s else None
        self.evaluation_s = evaluation_s
        self._is_warm = False

    def after_step(self, seconds: float) -> None:
        """Another step took ``seconds``."""
        if self.step_s is None:
            self.step_s = seconds
        elif self._is_warm:
            self.step_s = 0.9 * self.step_s + 0.1 * seconds
        else:
            # The first step of a process also starts the loader, so it says little: less than steps before a resume.
            self.step_s = min(self.step_s, seconds)
        self._is_warm = True

    def left_s(self, n_steps: int, n_evaluations: int) -> float:
        """Seconds for this many steps and evaluations; an evaluation of unknown duration counts as none."""
        return n_steps * (self.step_s or 0.0) + n_evaluations * (self.evaluation_s or 0.0)


class Budget:
    """The time limit of one call, in which the evaluations at its end take place too.

    minutes: None for no limit. estimate: seconds that an evaluation will take, asked for once if none is known.
    n_last: how many evaluations there are at the end.
    """

    def __init__(
        self,
        minutes: float | None,
        pace: Pace,
        estimate: Callable[[], float],
        clock: Callable[[], float],
        n_last: int = 1,
    ) -> None:
        self._pace, self._estimate, self._clock, self._n_last = pace, estimate, clock, n_last
        self._deadline = math.inf if minutes is None else clock() + 60 * minutes

    def is_spent(self) -> bool:
        """Whether another step and the evaluations would take longer than what is left."""
        if math.isinf(self._deadline):
            return False
        if self._clock() >= self._deadline:
            return True
        if self._pace.evaluation_s is None:
            self._pace.evaluation_s = self._estimate()
        left_s = (self._pace.step_s or 0.0) + self._n_last * _MARGIN * self._pace.evaluation_s
        return self._clock() + left_s >= self._deadline
