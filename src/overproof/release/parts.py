"""The finished stages of a run, from which a release is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overproof.core.artifact import Artifact, Json
from overproof.release.quality import result_of
from overproof.release.seeds import over_seeds


@dataclass(frozen=True)
class Parts:
    """The finished stages of a run.

    Attributes:
        corpus, teacher: where the run trained its own teacher: the teacher, and the records, unless
            they are those of `train`.
        students, evaluations: one a seed; those of the first count, and its student is released.
        controls: the control arms by name, one a seed.
        export, speed: where builds were asked for.
    """

    train: Artifact
    heldout: Artifact
    corpus: Artifact | None
    teacher: Artifact | None
    terms: Artifact
    samples: Artifact
    signals: Artifact | None
    initial: Artifact
    students: tuple[Artifact, ...]
    controls: Mapping[str, tuple[Artifact, ...]]
    evaluations: tuple[Artifact, ...]
    export: Artifact | None
    speed: Artifact | None

    @property
    def datasets(self) -> list[Artifact]:
        """Every certified set of records."""
        return [part for part in (self.train, self.heldout, self.corpus) if part is not None]

    @property
    def student(self) -> Artifact:
        """The one that is released."""
        return self.students[0]

    @property
    def arms(self) -> list[Artifact]:
        """All that were trained, in the order of the work."""
        return [*self.students, *(one for arm in self.controls.values() for one in arm)]

    @property
    def evaluation(self) -> Artifact:
        """That of the released student."""
        return self.evaluations[0]

    @property
    def chain(self) -> list[Artifact]:
        """Every artifact, in the order of the work."""
        before = (
            self.train, self.heldout, self.corpus, self.teacher, self.terms, self.samples,
            self.signals, self.initial,
        )  # fmt: skip
        every = [*before, *self.arms, *self.evaluations, self.export, self.speed]
        return [part for part in every if part is not None]

    def over_seeds(self, confidence: float) -> Json | None:
        """What the evaluations say together; None: there is one."""
        return over_seeds([result_of(one) for one in self.evaluations], confidence)


def measured(artifact: Artifact) -> Json:
    """What a stage measured of its own run: times, speeds, the machine."""
    found: Json = artifact.manifest["times"]["measured"]
    return found
