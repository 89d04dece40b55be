"""Handlers name the arguments they want; the broker's keys never meet."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import ConfigError
from asyncjobs.broker import keys as catalogue
from asyncjobs.broker.keys import Keys, encode_group, index_member, split_member
from asyncjobs.declare.definition import JOB_ARGUMENTS, Call

GIVEN = {"data": 1, "job": 2, "queue": 3, "io": 4, "services": 5}


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (lambda: (), ()),
        (lambda data: data, 1),
        (lambda io, data: (io, data), (4, 1)),
        (lambda services, queue, job: (services, queue, job), (5, 3, 2)),
        (lambda data, extra=9: (data, extra), (1, 9)),
        (lambda data, *, io: (data, io), (1, 4)),
        (lambda data, **rest: (data, rest), (1, {})),
    ],
)
def test_any_subset_of_the_arguments_in_any_order(function, result):
    assert Call(function, JOB_ARGUMENTS, "handle")(GIVEN) == result


def test_an_unknown_argument_lists_the_allowed():
    with pytest.raises(ConfigError, match="handle asks for 'payload'; it may name data, job, queue, io, services"):
        Call(lambda payload: 1, JOB_ARGUMENTS, "handle")
    with pytest.raises(ConfigError, match="positional-only"):
        Call(lambda data, /: 1, JOB_ARGUMENTS, "handle")


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_groups_never_share_a_key(one, other):
    try:
        one.encode(), other.encode()
    except UnicodeEncodeError:
        return
    a, b = Keys("p", "job", one), Keys("p", "job", other)
    assert (a.stream == b.stream) == (one == other)
    for keys in (a, b):
        assert keys.stream.count("{") == keys.stream.count("}") == 1
        assert keys.stream.isascii()


def test_a_name_and_a_group_never_meet_another_name():
    assert Keys("p", "sync", "data-1").stream != Keys("p", "sync-data", "1").stream
    assert Keys("p", "sync-data-1").stream != Keys("p", "sync-data", "1").stream
    assert encode_group("~" + "a" * 64) != encode_group("b" * 500)


@given(st.text(min_size=1), st.text())
def test_index_members_are_read_back(group, job_id):
    assert split_member(index_member(group, job_id)) == (group, job_id)


def test_the_catalogue_of_keys_is_that_which_keys_are_read_by():
    """Every key of the text is known, of its kind, and nothing else is."""
    sections = re.split(r"\n    (?=\{prefix)", catalogue.__doc__.split("\n\nThe braces")[0])[1:]
    told = [
        set(re.findall(r"(?<=:)[a-z]+(?=[ :<1])", "\n".join(re.findall(r"^ {6}:.{10}", one, re.M)))) for one in sections
    ]
    assert told == [catalogue.OF_INSTALLATION, catalogue.OF_NAME | {"c", "f", "k"}, catalogue.OF_QUEUE]
    assert catalogue.parted("p", "{p:mail:a%3Ab}:j:x:y\n") == ("{p:mail:a%3Ab}", "mail", "j", "x:y\n")
    assert catalogue.parted("p", "{p:mail}:b12") == ("{p:mail}", "mail", "b12", "")
    assert catalogue.parted("p", "{p}:gate:box:1") == ("{p}", "", "gate", "box:1")
    for foreign in ("{p}:s", "{p:mail:g}:groups", "{q:mail}:s", "{p:mail}:what", "p:mail:s", "{px:mail}:s", ""):
        assert catalogue.parted("p", foreign) is None
