"""Laws of the gate: meet is a semilattice, more teachers are never laxer, unknown never permits."""

from __future__ import annotations

from datetime import date
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from overproof.core.errors import PolicyError, UsageError
from overproof.policy import licences, match
from overproof.policy.gate import Teacher, decide
from overproof.policy.licences import LicenceClass
from overproof.policy.lookup import lookup
from overproof.policy.obligations import carry_out, rename, unmet
from overproof.policy.rows import CHANNELS, load_rows
from overproof.policy.verdict import Verdict, meet

TODAY = date(2026, 11, 24)
verdicts = st.sampled_from(list(Verdict))
classes = st.sampled_from(list(LicenceClass))
known = st.sampled_from(
    sorted({p.replace("[0-9]", "1").replace("*", "") for row in load_rows() for p in row.match})
)
names = st.one_of(known, st.text(min_size=1, max_size=40)).filter(str.strip)
teachers = st.lists(st.builds(Teacher, names), min_size=1, max_size=4)
channels = st.sampled_from(CHANNELS)
days = st.dates(date(2020, 1, 1), date(2030, 1, 1))


@given(verdicts, verdicts, verdicts)
def test_meet_of_verdicts_is_associative_commutative_idempotent(a, b, c) -> None:
    assert meet([a, meet([b, c])]) == meet([meet([a, b]), c])
    assert meet([a, b]) == meet([b, a])
    assert meet([a, a]) == a
    assert meet([a, Verdict.ALLOW]) == a
    assert meet([a, Verdict.DENY]) == Verdict.DENY


@given(classes, classes, classes)
def test_meet_of_licence_classes_is_associative_commutative_idempotent(a, b, c) -> None:
    assert licences.meet([a, licences.meet([b, c])]) == licences.meet([licences.meet([a, b]), c])
    assert licences.meet([a, b]) == licences.meet([b, a])
    assert licences.meet([a, a]) == a
    assert licences.meet([a, b]).verdict.rank <= max(a.verdict.rank, b.verdict.rank)


@given(teachers, names, channels, days)
def test_adding_a_teacher_never_loosens(group, extra, channel, day) -> None:
    before = decide(group, channel=channel, on=day)
    after = decide([*group, Teacher(extra)], channel=channel, on=day)
    assert after.verdict.rank <= before.verdict.rank
    assert set(before.obligations) <= set(after.obligations)


@given(st.lists(st.builds(Teacher, names), min_size=1, max_size=3), channels)
def test_the_order_of_teachers_does_not_matter(group, channel) -> None:
    decisions = [decide(order, channel=channel, on=TODAY) for order in permutations(group)]
    assert len({decision.verdict for decision in decisions}) == 1
    assert len({frozenset(decision.obligations) for decision in decisions}) == 1


@given(names, channels, days)
def test_no_row_no_permission_and_every_refusal_gives_its_reason(name, channel, day) -> None:
    found = lookup(name, channel, day)
    if not found.rows:
        assert found.verdict is Verdict.UNKNOWN
    if found.verdict.permits:
        assert all(row.verdict.permits for row in found.rows)
        return
    try:
        decide([Teacher(name)], channel=channel, on=day).require()
    except PolicyError as error:
        text = error.render()
        assert "signed approval" in text
        assert found.row is None or (found.row.clause in text and found.row.document in text)
    else:
        raise AssertionError("a refusal passed")


@given(names)
def test_normalising_twice_changes_nothing(name) -> None:
    assert match.normalise(match.normalise(name)) == match.normalise(name)


@given(names, st.text(max_size=30))
def test_what_a_plan_says_meets_what_a_recheck_asks(teacher, student) -> None:
    decision = decide([Teacher(teacher)], channel="weights", on=TODAY)
    try:
        plan = carry_out(decision, student)
    except (PolicyError, UsageError):
        return
    card = "\n".join([plan.name, *plan.card_lines])
    found = unmet({**plan.files, "README.md": card}, plan.name, plan.obligations)
    assert [entry.obligation for entry in found] == [m.obligation for m in plan.missing]


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", fullmatch=True))
def test_renaming_is_idempotent_and_gives_the_prefix(name) -> None:
    prefix = [o for row in load_rows() for o in row.obligations if o.kind == "name_prefix"][:1]
    once = rename(name, prefix)
    assert once.startswith("Llama")
    assert rename(once, prefix) == once
