"""Gradients, updates and losses of groups of classes at every evaluation, beside loss and accuracy."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from experiments.tasks.problems import Problem
from experiments.training import evaluation

WINDOW = 9
"""Steps before an evaluated one over which |update| is averaged, to say what is usual of an element."""
UNUSUAL = 2.0
"""An update is unusual if it exceeds its usual size this many times."""
GROUPS = 5
"""The most groups of classes."""
OF_STEP = ("grad_norm", "update_ratio", "unusual_updates")
OF_GROUP = "loss_of_group_"


def columns_of(names: Iterable[str]) -> list[str]:
    """Return those of the names of columns that are diagnostics."""
    return [name for name in names if name in OF_STEP or name.startswith(OF_GROUP)]


class Diagnostics:
    """Observes the steps before evaluations of a population's training, without changing it.

    Attributes:
        groups: classes of each group, as of `class_groups`.
        sums: of each evaluation whose window has begun, by its step: sums of |update| over the steps so far, one tensor
            for each parameter. All that a resumed training needs.
    """

    def __init__(self, problem: Problem, params: Sequence[torch.Tensor], evaluate_at: Sequence[int]):
        """Observe no step before training.

        Args:
            params: the trained parameters, `[lanes, ...]` each, which training changes in place.
            evaluate_at: steps of the evaluations, ascending.
        """
        self.problem, self.params = problem, params
        self.evaluate_at = [step for step in evaluate_at if step]
        self.groups = class_groups(problem.data.y_train)
        self.sums: dict[int, list[torch.Tensor]] = {}
        # The parameters before a step; after it, what it has changed.
        self.kept = [torch.empty_like(p, requires_grad=False) for p in params]
        self.size_before = torch.empty(0)

    def evaluations_near(self, step: int) -> list[int]:
        """Return the steps of the evaluations for which a step counts: its own, and those whose window it is in."""
        return self.evaluate_at[bisect_left(self.evaluate_at, step) : bisect_right(self.evaluate_at, step + WINDOW)]

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Keep the parameters, outside of a step that a CUDA graph replays."""
        near = self.evaluations_near(step)
        if near:
            for kept, p in zip(self.kept, self.params, strict=True):
                kept.copy_(p)
        if step in near:
            self.size_before = norms(self.kept)

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Add up how far each element has moved."""
        near = self.evaluations_near(step)
        if near:
            for kept, p in zip(self.kept, self.params, strict=True):
                kept.sub_(p).abs_()
        for at in near:
            if at == step:
                continue
            if at in self.sums:
                for total, update in zip(self.sums[at], self.kept, strict=True):
                    total.add_(update)
            else:
                self.sums[at] = [update.clone() for update in self.kept]

    @torch.no_grad()
    def values(
        self, step: int, x: torch.Tensor, y: torch.Tensor, others: Sequence[torch.Tensor] = ()
    ) -> dict[str, torch.Tensor]:
        """Return the diagnostics of an evaluation, after its step: float64 `[lanes]` on the CPU, by name.

        Args:
            x, y: the evaluation set on the device of the parameters.
            others: what the module holds beside trained parameters.
        Returns:
            grad_norm: L2 norm of the gradient that the step used, over all trained parameters of a lane.
            update_ratio: RMS of the update over RMS of the parameters before it.
            unusual_updates: share of elements whose |update| exceeds twice its mean over the nine steps before, or over
                as many as there are; NaN in the first step.
            loss_of_group_1 and so on: mean loss over the examples of each group of classes; NaN without examples.
            The first three are NaN before training.
        """
        found = {name: torch.full((len(self.params[0]),), torch.nan, dtype=torch.float64) for name in OF_STEP}
        if step:
            size = norms(self.kept)
            found["grad_norm"] = norms([p.grad for p in self.params if p.grad is not None])
            found["update_ratio"] = size / self.size_before
            if sums := self.sums.pop(step, None):
                limit = UNUSUAL / min(WINDOW, step - 1)
                pairs = zip(self.kept, sums, strict=True)
                counts = [(update > total.mul_(limit)).reshape(len(total), -1).sum(1) for update, total in pairs]
                share = torch.stack(counts).sum(0).double() / sum(p[0].numel() for p in self.params)
                # Comparisons with NaN are false: of a lane that has diverged they would say 0.
                found["unusual_updates"] = share.where(size.isfinite(), torch.nan)
        for number, classes in enumerate(self.groups, 1):
            mine = torch.isin(y, classes.to(y.device))
            means = evaluation.means(self.problem.model, self.params, x[mine], y[mine], others) if mine.any() else {}
            found[f"{OF_GROUP}{number}"] = means.get("loss", torch.full_like(found["grad_norm"], torch.nan))
        return {name: value.cpu() for name, value in found.items()}

    def resume(self, sums: dict[int, list[torch.Tensor]]) -> None:
        """Go on from the `sums` of a state that was kept."""
        self.sums = {at: [total.clone() for total in of] for at, of in sums.items()}


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm over all elements of a lane, float64 `[lanes]`. tensors: `[lanes, ...]` each."""

    def of(t: torch.Tensor) -> torch.Tensor:
        # Squares of small gradients underflow in float32. Given a dtype, torch's norm would first copy all lanes.
        rows = t.reshape(len(t), -1)
        parts = rows.split(max(1, 2**18 // rows.shape[1]))
        return torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in parts])

    return torch.linalg.vector_norm(torch.stack([of(t) for t in tensors]), dim=0)


def class_groups(y: torch.Tensor) -> list[torch.Tensor]:
    """Return the classes of at most five groups with nearly equal numbers of examples, the most frequent first.

    No class is cut, so that a group may be much larger than the others.

    y: targets; there are no groups unless they are int64 `[examples]`.
    """
    if y.is_floating_point() or y.ndim != 1:
        return []
    classes, counts = y.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    groups, left = [], deque((classes[i], int(counts[i])) for i in order)
    while left:
        wanted = sum(count for _, count in left) / (GROUPS - len(groups))
        taken, size = [], 0
        # The last group wants all that is left.
        while left and (not taken or abs(size + left[0][1] - wanted) <= abs(size - wanted)):
            label, count = left.popleft()
            taken.append(label)
            size += count
        groups.append(torch.stack(taken))
    return groups


def group_sizes(y: torch.Tensor) -> list[dict[str, int]]:
    """Return the number of classes and of training examples in each of `class_groups`."""
    return [{"classes": len(group), "examples": int(torch.isin(y, group).sum())} for group in class_groups(y)]


def copies(steps: int, evaluations: int) -> int:
    """Return how many copies of the parameters diagnostics hold at most: of one step, and a sum for each window."""
    at = evaluation.evaluation_steps(steps, evaluations)
    return 1 + max(bisect_right(at, step + WINDOW) - i for i, step in enumerate(at) if step)
