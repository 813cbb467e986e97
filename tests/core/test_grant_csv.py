"""Grants as a table, there and back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grant_csv import read_csv, write_csv
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.errors import BadRequest
from tests.examples import examples

_NAMES = (
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and name.isprintable())
)


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    pinned = draw(st.lists(st.sampled_from(["GPU-1111", "GPU-2222"]), unique=True, max_size=2))
    begins = draw(st.none() | st.integers(1, 2_000_000_000))
    return Grant(
        id=draw(st.from_regex(r"[A-Za-z0-9_.:-]{1,20}", fullmatch=True)),
        to="user",
        # A cell of blanks alone is an empty one.
        subject=draw(_NAMES),
        pool="" if pinned else draw(st.just("") | _NAMES),
        gpus=tuple(map(GpuUuid, pinned)),
        count=draw(st.integers(1, max(1, len(pinned)) if pinned else 64)),
        share=draw(st.sampled_from(["any", "whole", "slot", "mig:1g.10gb"])),
        priority=draw(st.integers(-100, 100)),
        weekly_gpu_hours=draw(st.none() | st.floats(0.25, 1000)),
        max_lease_s=draw(st.none() | st.integers(60, 10**6)),
        valid_from=None if begins is None else float(begins),
        valid_until=None if begins is None else float(begins + draw(st.integers(1, 10**6))),
        images=tuple(draw(st.lists(st.sampled_from(["lab:1", "a/b:2.0"]), max_size=2))),
    )


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(grants(), max_size=4, unique_by=lambda one: one.id))
def test_what_is_exported_comes_back_the_same(there):
    there = [one for one in there if not one.id.startswith(("config:", "group:"))]
    # Two people who pin one GPU would be refused; that is no matter of the table.
    there = [one for place, one in enumerate(there) if not one.gpus or place == 0]
    rows, lines = read_csv(write_csv(there))
    assert parse_grants(rows, Known(), lines=lines) == tuple(there)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "'=1", "'x", "a,b", 'say "hi"'])
def test_a_name_is_no_formula_in_a_spreadsheet_and_comes_back(name):
    text = write_csv([Grant("g", "user", name)])
    (cell,) = [row["subject"] for row in csv.DictReader(io.StringIO(text))]
    assert not cell.startswith(("=", "+", "-", "@"))
    assert read_csv(text)[0][0]["subject"] == name


def test_a_spreadsheet_may_have_written_semicolons_a_byte_order_mark_and_other_line_ends():
    rows, lines = read_csv("\ufeffid;to;subject;count\r\na;user;ana;2\r\n\r\nb;user;bo;\r\n")
    assert rows == [
        {"id": "a", "to": "user", "subject": "ana", "count": 2},
        {"id": "b", "to": "user", "subject": "bo"},
    ]
    assert lines == [2, 4]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["the file is empty"]),
        ("\n", ["the file is empty"]),
        (" ,\n", ["the file is empty"]),
        (
            "user,ana\n",
            [
                "line 1: there is no column 'user'",
                "line 1: there is no column 'ana'",
                "line 1: there is no column 'to'",
                "line 1: there is no column 'subject'",
            ],
        ),
        ("to,subject,colour\nx,y,red\n", ["line 1: there is no column 'colour'"]),
        ("to,subject,id,id\na,b,x,y\n", ["line 1: the column id is there twice"]),
        ("to,subject\nuser,x,7\nuser,y\na,b,c\n", ["line 2: it has more", "line 4: it has more"]),
        ('id,to\n"x,user\n', ["it is no CSV"]),
    ],
)
def test_a_table_that_is_none_is_refused_with_every_fault(text, faults):
    with pytest.raises(BadRequest) as refused:
        read_csv(text)
    assert len(refused.value.faults) == len(faults)
    for fault, words in zip(refused.value.faults, faults, strict=True):
        assert fault.startswith(words)


def test_every_bad_row_is_named_by_its_line():
    text = "id,to,subject,count\na,user,ana,1\nb,user,,1\nc,user,cyd,many\nd,group,none,1\n"
    rows, lines = read_csv(text)
    known = Known(frozenset({"ana", "cyd"}), frozenset({"cv"}))
    with pytest.raises(BadRequest) as refused:
        parse_grants(rows, known, lines=lines)
    assert [one.row for one in refused.value.problems] == [3, 4, 5]
    assert [one.field for one in refused.value.problems] == ["", "count", "subject"]
    assert refused.value.faults[2] == "line 5 (d): subject: there is no group 'none'"
