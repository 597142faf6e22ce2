"""The shape with the most quality that a budget allows.

What the recipe names stays. Of the rest, among shapes within every limit:

1. Groups of heads go last: the most groups with which any shape fits.
2. Layers and the width of the MLPs shrink together: the largest of the smaller of both shares.
3. Of these, the most parameters.

At equal size a student of two thirds of the layers and of the width starts nearer to its teacher
than one of half the layers at full width (docs/log.md, 2026-11-25), and the published recipes leave
attention whole (arXiv 2408.11796). docs/adr has the decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from overproof.core.errors import UsageError
from overproof.core.sections import Budget, StudentConfig
from overproof.student.cost import Hardware, Predicted
from overproof.student.dimensions import Dimensions

LEAST_SHARE = 0.25  # of layers and of width; what is left of less starts from nothing
STEP = 64  # of the MLPs' width: multiples run fastest
MB = 1_000_000


@dataclass(frozen=True)
class Fitted:
    """A shape within a budget, and what it is expected to cost; None: nothing was measured."""

    student: StudentConfig
    predicted: Predicted | None


def fitted(student: StudentConfig, base: Dimensions, hardware: Hardware | None) -> Fitted:
    """The recipe's shape with what it leaves out chosen, by the rule above.

    Args:
        base: what it is cut from.
        hardware: needed where latency or memory is limited.

    Raises:
        UsageError: nothing fits; the message names the limits and the smallest shape's figures.
    """
    budget = student.budget
    if budget is None:
        return Fitted(student, None)
    if hardware is None and not (budget.latency_ms is None and budget.memory_mb is None):
        raise UsageError(
            "a budget of latency or memory needs a measured piece of hardware",
            hint="overproof plan --measure FILE measures this machine; then for=FILE",
        )
    shapes = [(one, base.cut(one)) for one in _shapes(student, base)]
    fitting = [
        (_rank(shape, base), one, shape)
        for one, shape in shapes
        if not excess(shape, budget, hardware)
    ]
    if not fitting:
        raise _too_small(min((shape for _, shape in shapes), key=_size), base, budget, hardware)
    _, best, shape = max(fitting, key=lambda row: row[0])
    return Fitted(best, hardware.predict(shape) if hardware else None)


def _shapes(student: StudentConfig, base: Dimensions) -> Iterator[StudentConfig]:
    """Every shape that the recipe leaves open."""
    least = max(1, round(LEAST_SHARE * base.layers))
    narrow = max(1, round(LEAST_SHARE * base.mlp_width / STEP)) * STEP
    widths = sorted({*range(narrow, base.mlp_width + 1, STEP), base.mlp_width})
    for kv_heads in [student.kv_heads] if student.kv_heads else range(1, base.kv_heads + 1):
        for layers in [student.layers] if student.layers else range(least, base.layers + 1):
            for width in [student.mlp_width] if student.mlp_width else widths:
                yield student.model_copy(
                    update={"kv_heads": kv_heads, "layers": layers, "mlp_width": width}
                )


def _rank(shape: Dimensions, base: Dimensions) -> tuple[int, float, int]:
    """See the rule above; larger is better."""
    shares = (shape.layers / base.layers, shape.mlp_width / base.mlp_width)
    return shape.kv_heads, min(shares), shape.parameters


def _size(shape: Dimensions) -> int:
    return shape.parameters


def excess(shape: Dimensions, budget: Budget, hardware: Hardware | None) -> list[str]:
    """The limits that a shape exceeds, each with its figure."""
    found = []
    if budget.parameters is not None and shape.parameters > budget.parameters:
        found.append(f"parameters: {shape.parameters:,}, limit {budget.parameters:,}")
    if hardware is None:
        return found
    cost = hardware.predict(shape)
    if budget.latency_ms is not None and cost.latency_ms > budget.latency_ms:
        found.append(f"latency: {cost.latency_ms:.3g} ms a token, limit {budget.latency_ms:g} ms")
    if budget.memory_mb is not None and cost.memory_bytes > budget.memory_mb * MB:
        found.append(f"memory: {cost.memory_bytes / MB:.4g} MB, limit {budget.memory_mb:g} MB")
    return found


def _too_small(
    least: Dimensions, base: Dimensions, budget: Budget, hardware: Hardware | None
) -> UsageError:
    of = f" on {hardware.name}" if hardware else ""
    return UsageError(
        f"no shape fits student.budget{of}",
        details=[
            f"the smallest has {least.layers} layers, MLPs of {least.mlp_width}, "
            f"{least.kv_heads} of {base.kv_heads} groups of heads, {least.vocabulary:,} tokens; "
            "it exceeds:",
            *excess(least, budget, hardware),
        ],
        hint="raise the limit, lower student.vocabulary, or cut from a smaller student.base",
    )
