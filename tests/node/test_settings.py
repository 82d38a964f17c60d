"""What must hold for every setting, also for those that come later."""

from __future__ import annotations

import re

import msgspec
import pytest

from spread.node.flags import FLAGS, Flag
from spread.node.settings import Settings

every_setting = pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)


def test_no_setting_is_left_out() -> None:
    keys = [
        f"{section.name}.{field.name}"
        for section in msgspec.structs.fields(Settings)
        for field in msgspec.structs.fields(section.type)
    ]
    assert [flag.key for flag in FLAGS] == keys


@every_setting
def test_it_is_described_in_sentences(flag: Flag) -> None:
    assert re.fullmatch(r"\S.*[.]", flag.help), "a description ends with a full stop"
    assert "\n" not in flag.help


@every_setting
def test_its_default_is_one_of_its_values(flag: Flag) -> None:
    assert msgspec.convert(flag.default, flag.type) == flag.default


@every_setting
def test_a_number_has_a_lower_bound(flag: Flag) -> None:
    if flag.kind in ("int", "float"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(-1, flag.type)
        assert flag.bounds


@every_setting
def test_a_time_says_its_unit(flag: Flag) -> None:
    if flag.kind == "float":
        assert flag.unit, "a number with a fraction has a unit in its name"


@pytest.mark.parametrize("name", ["key", "flag", "variable", "parameter"])
def test_names_are_unique(name: str) -> None:
    names = [getattr(flag, name) for flag in FLAGS]
    assert len(set(names)) == len(names)


@every_setting
def test_its_names_are_well_formed(flag: Flag) -> None:
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag.flag)
    assert re.fullmatch(r"SPREAD(_[A-Z]+)+", flag.variable)
    assert flag.parameter.isidentifier()


@every_setting
def test_no_flag_looks_like_the_opposite_of_another(flag: Flag) -> None:
    assert not flag.flag.startswith("--no-")


def test_sections_cannot_be_changed_or_misspelled() -> None:
    for section in msgspec.structs.fields(Settings):
        config = section.type.__struct_config__
        assert config.frozen and config.forbid_unknown_fields
