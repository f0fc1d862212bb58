"""Which VOLUMEs of an image count, and where they are mounted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.model.container import Mount
from crishim.model.process import MountSpec
from crishim.spec.volumes import declared_volumes, is_allowed, volume_mounts


def test_paths_end_in_the_root_and_parents_come_first() -> None:
    assert declared_volumes(("/b/c/", "../../b", "/../../etc", "a//./x", "/b"), ()) == ("/b", "/etc", "/a/x", "/b/c")


def test_mounts_of_the_request_and_the_kernels_trees_stay_what_they_are() -> None:
    volumes = ("/", "/..", "/proc", "/proc/x", "/x/../sys/fs/cgroup", "/dev", "/data", "/procs", "/data/in")
    assert declared_volumes(volumes, (Mount("/data/", "/host"),)) == ("/procs", "/data/in")


@pytest.mark.parametrize(
    ("volumes", "sentence"),
    [
        (("",), "declares the volume '', which is not a path"),
        (("/a\0",), "declares the volume '/a.x00', which is not a path"),
        (tuple(f"/{number}" for number in range(129)), "declares 129 volumes, more than 128"),
    ],
)
def test_what_cannot_be_a_volume_is_named(volumes: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        declared_volumes(volumes, ())


@given(st.lists(st.text("/.ab\n ", min_size=1), max_size=20))
def test_any_path_is_absolute_and_stays_inside(volumes: list[str]) -> None:
    for path in declared_volumes(volumes, ()):
        assert path.startswith("/") and not {"", ".", ".."} & set(path[1:].split("/"))


def test_where_links_of_the_image_lead_counts_for_the_mount() -> None:
    places = [("/v/0", "/data"), ("/v/1", "/proc/sys"), ("/v/2", "/"), ("/v/3", "/data"), ("/v/4", "/taken")]
    assert volume_mounts(places, (Mount("/taken", "/host"),), idmap=True) == [
        MountSpec("/data", "bind", "/v/0", ("nodev",), idmap=True)
    ]
    assert not is_allowed("/sys") and is_allowed("/sysx")
