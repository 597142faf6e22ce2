"""Tell what this machine can do and what is missing, with the exact remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overproof.core.check import Check
from overproof.core.errors import install
from overproof.core.section import Section
from overproof.core.workers import SHARED_REMEDY
from overproof.machine import (
    CANN_LIBRARY,
    DEMO_RECIPE,
    DEMO_TEACHER,
    SHARED_MEMORY,
    Machine,
    Package,
    look,
    release,
)

PYTHON = (3, 11)  # pyproject.toml, requires-python
DEMO_MEMORY_BYTES = 6_000_000_000  # the demo's peak on two cores stays below this
DEMO_CORES = 2
CORE_BYTES = 800_000_000  # what each further one adds, in evaluation; 350 MB in sampling
# Parameters that processes share: evaluation has four models in bf16, embeddings in fp32; training
# the student twice, in bf16 and fp32, and bf16 gradients of each worker, one a sequence of a step.
DEMO_EVALUATION_SHARES_BYTES = 800_000_000
DEMO_TRAINING_SHARES_BYTES, DEMO_GRADIENT_BYTES, DEMO_SEQUENCES = 400_000_000, 130_000_000, 6
FP32_SHARES = 1.8  # times as much where bf16 is not used
DEMO_DISK_BYTES = 2_500_000_000  # `overproof distill --dry-run` says 1.6 GiB; room to work in
GIGABYTE = 1_000_000_000
SLOW_CORES = 1  # on one core the demo takes about twice its 20 minutes
CANN_REMEDY = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


class Config(Section):
    """What to look at."""

    folder: Path = Path()  # where the demo would write
    recipe: str | None = None  # try this one, in place of looking at the machine
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """Every check, in the order of the lines."""

    checks: tuple[Check, ...]
    packages: tuple[Package, ...] = ()
    recipe: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if the demo can run here, or the recipe; 1 if something is missing."""
        return int(any(check.state == "missing" for check in self.checks))

    def to_json(self) -> dict[str, Any]:
        """The checks for machines."""
        checks = [asdict(check) for check in self.checks]
        if self.recipe is not None:
            return {"recipe": self.recipe, "fit": self.exit_code == 0, "checks": checks}
        return {
            "demo_runs": self.exit_code == 0,
            "checks": checks,
            "packages": [asdict(package) for package in self.packages],
        }


def run(config: Config) -> Result:
    """Look at the machine and judge it; nothing is changed or fetched. Or try a recipe.

    Raises:
        OverproofError: a recipe that cannot be tried, see `preflight.run`.
    """
    if config.recipe is not None:
        from overproof import preflight

        return Result(preflight.run(config.recipe, config.overrides), recipe=config.recipe)
    machine = look(config.folder)
    return Result(judge(machine), machine.packages or ())


def render(result: Result) -> str:
    """One line a check, its remedy below it, the outcome last."""
    wide = max(len(check.name) for check in result.checks)
    lines = []
    for check in result.checks:
        lines.append(f"{check.state:<7}  {check.name:<{wide}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':<{wide + 9}}  -> {check.remedy}")
    missing = [check.name for check in result.checks if check.state == "missing"]
    lines.append("")
    what = "the demo can" if result.recipe is None else f"{result.recipe} can"
    if missing:
        lines.append(f"{what}not run here; missing: {', '.join(missing)}")
    else:
        lines.append(f"{what} run here: overproof distill {result.recipe or DEMO_RECIPE}")
    return "\n".join(lines)


def judge(machine: Machine) -> tuple[Check, ...]:
    """Judge what was found: a rule a line, no look at the world."""
    return (
        _python(machine),
        *_packages(machine),
        _torch(machine),
        _teacher(machine),
        _engine(machine),
        _recipe(machine),
        _cores(machine),
        _bf16(machine),
        _memory(machine),
        _shared(machine),
        _disk(machine),
        _openmp(machine),
        _accelerators(machine),
        *_ascend(machine),
        _keys(machine),
    )


def _python(machine: Machine) -> Check:
    text = ".".join(map(str, machine.python))
    if machine.python >= PYTHON:
        return Check("python", "ok", text)
    wanted = ".".join(map(str, PYTHON))
    return Check("python", "missing", f"{text}, wanted {wanted} or newer", "make PYTHON=python3.11")


def _packages(machine: Machine) -> Iterable[Check]:
    if machine.packages is None:
        remedy = install("all")
        yield Check("packages", "warning", "overproof runs from source, not installed", remedy)
        return
    for extra in ("", "distill"):
        rows = [package for package in machine.packages if package.extra == extra]
        name = f"extra {extra}" if extra else "base install"
        wrong = [
            f"{row.name} {row.installed or 'absent'} (wanted {row.wanted} or newer)"
            for row in rows
            if not row.fits
        ]
        if wrong:
            detail = f"{len(wrong)} of {len(rows)}: {', '.join(wrong)}"
            yield Check(name, "missing", detail, install(extra))
        else:
            yield Check(name, "ok", f"{len(rows)} packages, all of them recent enough")


def _torch(machine: Machine) -> Check:
    if machine.torch is None:
        return Check("torch", "ok", f"{machine.versions.get('torch', '')} imports".strip())
    remedy = install("distill")
    if "backend extension" in machine.torch or CANN_LIBRARY in machine.torch:
        # torch loads torch-npu by itself, and torch-npu fails where CANN is not set up.
        remedy = f"export TORCH_DEVICE_BACKEND_AUTOLOAD=0, or with CANN: {CANN_REMEDY}"
    return Check("torch", "missing", machine.torch, remedy)


def _teacher(machine: Machine) -> Check:
    error = machine.teacher
    if error is None:
        return Check("teacher", "ok", f"{DEMO_TEACHER}, digest as pinned")
    return Check.failed("teacher", error)


def _engine(machine: Machine) -> Check:
    if machine.engine is None:
        version = machine.versions.get("xllamacpp", "")
        return Check("engine", "ok", f"llama.cpp, xllamacpp {version}; {machine.engine_info}")
    return Check("engine", "missing", machine.engine, install("distill"))


def _recipe(machine: Machine) -> Check:
    error = machine.recipe
    if error is None:
        return Check("recipe", "ok", DEMO_RECIPE)
    return Check("recipe", "missing", error.what, install())


def _cores(machine: Machine) -> Check:
    detail = f"{machine.cores} usable, {machine.processor.model}"
    if machine.cores > SLOW_CORES:
        return Check("cores", "ok", detail)
    return Check("cores", "warning", f"{detail}; the demo takes about twice as long")


def _bf16(machine: Machine) -> Check:
    if machine.processor.tiles:
        return Check("bf16", "ok", "AMX: matrix products in bf16")
    if machine.processor.bf16:
        return Check("bf16", "ok", "the processor multiplies bf16; no AMX")
    detail = "no bf16 matrix products: fp32 is used, and training takes several times longer"
    return Check("bf16", "warning", detail)


def _memory(machine: Machine) -> Check:
    total, free = machine.memory_bytes, machine.memory_available_bytes
    wanted = DEMO_MEMORY_BYTES + CORE_BYTES * max(0, machine.cores - DEMO_CORES)
    on = f" on {machine.cores} cores" if machine.cores > DEMO_CORES else ""
    detail = f"{_gb(free)} of {_gb(total)} available; the demo wants {_gb(wanted)}{on}"
    if total < wanted:
        remedy = _fewer_cores(machine, total) + "use a machine, or a container limit, with more"
        return Check("memory", "missing", detail, remedy)
    if free < wanted:
        remedy = _fewer_cores(machine, free) + "end other programs: ps aux --sort=-rss | head"
        return Check("memory", "warning", detail, remedy)
    return Check("memory", "ok", detail)


def _fewer_cores(machine: Machine, size: int) -> str:
    """The command for as many cores as this much memory is enough for, where that helps."""
    if machine.cores <= DEMO_CORES or size < DEMO_MEMORY_BYTES:
        return ""
    last = DEMO_CORES - 1 + (size - DEMO_MEMORY_BYTES) // CORE_BYTES
    return f"taskset -c 0-{last} overproof distill {DEMO_RECIPE}; or "


def _shared(machine: Machine) -> Check:
    free = machine.shared_free_bytes
    if free is None:
        return Check("shared memory", "ok", "not in a folder here")
    workers = min(machine.cores, DEMO_SEQUENCES)
    wanted = max(
        DEMO_EVALUATION_SHARES_BYTES, DEMO_TRAINING_SHARES_BYTES + DEMO_GRADIENT_BYTES * workers
    )
    if not machine.processor.bf16:
        wanted = round(wanted * FP32_SHARES)
    detail = f"{_gb(free)} free in {SHARED_MEMORY}; the demo wants {_gb(wanted)}"
    if free >= wanted:
        return Check("shared memory", "ok", detail)
    return Check("shared memory", "missing", detail, SHARED_REMEDY)


def _disk(machine: Machine) -> Check:
    free = machine.disk_free_bytes
    detail = f"{_gb(free)} free in {machine.folder}; the demo wants {_gb(DEMO_DISK_BYTES)}"
    if free >= DEMO_DISK_BYTES:
        return Check("disk", "ok", detail)
    return Check("disk", "missing", detail, "overproof distill --out DIR on another disk")


def _openmp(machine: Machine) -> Check:
    policy = machine.omp_wait_policy
    if policy is None:
        return Check("openmp", "ok", "OMP_WAIT_POLICY not set; Overproof sets PASSIVE")
    if policy.upper() == "PASSIVE":
        return Check("openmp", "ok", "OMP_WAIT_POLICY=PASSIVE")
    detail = f"OMP_WAIT_POLICY={policy}: waiting threads spin, up to 12 times slower when shared"
    return Check("openmp", "warning", detail, "export OMP_WAIT_POLICY=PASSIVE")


def _accelerators(machine: Machine) -> Check:
    if machine.accelerators:
        found = ", ".join(machine.accelerators)
        return Check("accelerator", "ok", f"{found}; this version trains on the processor")
    return Check("accelerator", "ok", "none that torch sees; the processor does the work")


def _ascend(machine: Machine) -> Iterable[Check]:
    """Only where torch-npu is installed: it pins torch exactly and needs CANN."""
    if machine.npu is None:
        return
    torch = machine.versions.get("torch")
    if torch and release(torch)[:2] != release(machine.npu)[:2]:
        minor = ".".join(map(str, release(torch)[:2]))
        detail = f"torch-npu {machine.npu} does not belong to torch {torch}"
        yield Check("ascend", "warning", detail, f"pip install 'torch-npu=={minor}.*'")
    elif not machine.cann:
        detail = f"torch-npu {machine.npu}, but CANN is not set up ({CANN_LIBRARY} not found)"
        yield Check("ascend", "warning", detail, CANN_REMEDY)
    else:
        yield Check("ascend", "ok", f"torch-npu {machine.npu}, CANN found")


def _keys(machine: Machine) -> Check:
    folder = machine.keys_folder
    if machine.open_keys:
        named = " ".join(map(str, machine.open_keys))
        return Check("keys", "warning", "private keys that others can read", f"chmod 600 {named}")
    if not machine.keys:
        return Check("keys", "ok", f"none yet in {folder}; `overproof keys new` makes one")
    return Check("keys", "ok", f"{', '.join(machine.keys)} in {folder}")


def _gb(size: int) -> str:
    return f"{size / GIGABYTE:,.1f} GB"
