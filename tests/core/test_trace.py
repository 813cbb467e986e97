"""How a demand is read from a file, written back, and made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.trace import DEMANDS, Job, generate, parse_trace, write_trace
from pytorch_spawner.errors import BadRequest

HEAD = "arrive_s,user,groups,gpus,share,pool,hold_s\n"


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        (
            HEAD + "0,ana,cv ml,2,slot,a100,60\n",
            [Job(0.0, "ana", 60.0, ("cv", "ml"), 2, "slot", "a100")],
        ),
        ("user,hold_s,arrive_s\nana,1.5,2e3\n", [Job(2000.0, "ana", 1.5)]),
        (HEAD + "9,ana,,,,,1\n5,bob,,,,,1\n9,cyd,,,,,1\n",
         [Job(5.0, "bob", 1.0), Job(9.0, "ana", 1.0), Job(9.0, "cyd", 1.0)]),
        (HEAD + '0, "ana, the first",a;b,1,mig:1g.10gb, big ,1\n',
         [Job(0.0, "ana, the first", 1.0, ("a", "b"), 1, "mig:1g.10gb", "big")]),
        (HEAD.strip() + "\r\n\r\n0,ana,,,,,1\r\n\r\n", [Job(0.0, "ana", 1.0)]),
    ],
    ids=[
        "every column",
        "only those that must be, in another order",
        "in order of arrival; who comes together stays in order",
        "quotes, spaces and semicolons",
        "empty lines and the line ends of a spreadsheet",
    ],
)  # fmt: skip
def test_what_is_read(text: str, jobs: list[Job]) -> None:
    assert list(parse_trace(text)) == jobs


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["there is no column arrive_s", "there is no column user",
              "there is no column hold_s"]),
        (HEAD, ["it has no row"]),
        ("arrive_s,user,hold_s,gpu\n0,ana,1,1\n", ["unknown column 'gpu'"]),
        ("arrive_s,user,user,hold_s\n0,ana,ana,1\n", ["one column is named twice"]),
        (HEAD + "0,ana,,,,,1,,\n", ["line 2: more cells than the header has columns"]),
        (HEAD + "0,ana\n", ["line 2: column hold_s: not a number of seconds above 0"]),
        (
            HEAD + "-1,,,0,half,,0\n0,ana,,,,,1\nnan,bob,,1.5,mig:x,,inf\n",
            [
                "line 2: column arrive_s: not a number of seconds, 0 or more",
                "line 2: column user: names nobody",
                "line 2: column gpus: not a number of GPUs from 1 to 99",
                'line 2: column share: not "any", "whole", "slot" or "mig:<profile>"',
                "line 2: column hold_s: not a number of seconds above 0",
                "line 4: column arrive_s: not a number of seconds, 0 or more",
                "line 4: column gpus: not a number of GPUs from 1 to 99",
                'line 4: column share: not "any", "whole", "slot" or "mig:<profile>"',
                "line 4: column hold_s: not a number of seconds above 0",
            ],
        ),
        (HEAD + '0,"ana,,,,,1\n', ["line 2: unexpected end of data"]),
    ],
    ids=[
        "nothing",
        "a header alone",
        "a column that nobody knows",
        "a column twice",
        "a cell too many",
        "a cell too few",
        "every fault of every row",
        "a quote that nobody closes",
    ],
)  # fmt: skip
def test_what_is_refused_whole_with_every_fault(text: str, faults: list[str]) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_trace(text)
    assert list(refused.value.faults) == faults
    assert all(fault in refused.value.public_message for fault in faults)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(
    st.lists(
        st.builds(
            Job,
            arrive_s=st.floats(0, 1e9),
            user=NAMES.filter(lambda name: len(name) <= 255),
            hold_s=st.floats(0, 1e9, exclude_min=True),
            groups=st.lists(NAMES.filter(lambda name: ";" not in name)).map(tuple),
            gpus=st.integers(1, 99),
            share=st.sampled_from(["any", "whole", "slot", "mig:1g.10gb"]),
            pool=st.just("") | NAMES,
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read_back_equal(jobs: list[Job]) -> None:
    assert list(parse_trace(write_trace(jobs))) == sorted(jobs, key=lambda job: job.arrive_s)


@given(st.text())
def test_whatever_a_file_holds_is_read_or_refused(text: str) -> None:
    try:
        jobs = parse_trace(HEAD + text)
    except BadRequest as error:
        refused = error
    else:
        assert jobs
        return
    assert refused.faults


@pytest.mark.parametrize("demand", DEMANDS)
def test_a_demand_is_the_same_for_the_same_seed(demand: str) -> None:
    one, again, other = (generate(demand, people=50, days=7, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert list(one) == sorted(one, key=lambda job: job.arrive_s)
    assert all(job.arrive_s >= 0 and job.hold_s > 0 and job.groups for job in one)
    assert parse_trace(write_trace(one)) == one


def test_a_class_comes_at_nine_on_working_days() -> None:
    jobs = generate("class", people=12, days=8, seed=4)
    assert len(jobs) == 12 * 6
    assert {job.groups for job in jobs} == {("class",)}
    for job in jobs:
        day, second = divmod(job.arrive_s, 24 * 3600)
        assert day % 7 < 5
        assert -300 <= second - 9 * 3600 <= 600
        assert 45 * 60 <= job.hold_s <= 100 * 60


def test_a_school_has_classes_of_thirty_and_researchers() -> None:
    jobs = generate("school", people=200, days=28, seed=5, most=2)
    groups = {group for job in jobs for group in job.groups}
    assert groups == {*(f"class-{number}" for number in range(1, 7)), "research"}
    members = {job.user for job in jobs if job.groups == ("class-6",)}
    assert len(members) == 20
    research = [job for job in jobs if job.groups == ("research",)]
    assert len({job.user for job in research}) == 30
    assert {job.gpus for job in research} == {1, 2}
    assert all(4 * 3600 <= job.hold_s <= 12 * 3600 for job in research)
    assert all(job.gpus == 1 for job in jobs if job not in research)
    mornings = [job for job in jobs if 8.9 < job.arrive_s / 3600 % 24 < 9.2]
    assert len(mornings) > len(jobs) / 5
