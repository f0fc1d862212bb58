"""What is kept of the users of images: a hostile image may have as many as its files hold."""

from __future__ import annotations

import asyncio
from typing import Any

from crishim.model.image import Image, ImageConfig
from crishim.runtime.users import ImageUsers


class _Executor:
    """Answers the role with the files of the image that is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def run_role(self, name: str, request: dict[str, Any], **_: Any) -> dict[str, Any]:
        (image,) = request["lowers"]
        self.asked.append(image.decode())
        return {"passwd": self.files.get(image.decode(), b"a:x:1:1::/:\n"), "group": b""}


class _Images:
    def layer_paths(self, image: Image) -> tuple[str, ...]:
        return (image.id,)


def _image(name: str) -> Image:
    return Image(name, (), (), 1, ImageConfig(), ())


def _lines(count: int) -> bytes:
    return b"".join(b"u%d:x:%d:0::/:\n" % (number, number) for number in range(count))


def asked_for(executor: _Executor, *names: str) -> list[str]:
    """The images whose files were read when users of these were asked for in order."""

    async def ask() -> None:
        users = ImageUsers(executor, _Images())  # type: ignore[arg-type]
        for name in names:
            database = await users.of(_image(name))
            assert len(database.users) == executor.files.get(name, b"\n").count(b"\n")

    asyncio.run(ask())
    return executor.asked


def test_users_of_an_image_are_read_once() -> None:
    assert asked_for(_Executor(), "a", "b", "a", "b") == ["a", "b"]


def test_an_image_with_more_users_than_are_kept_is_read_each_time_and_displaces_nobody() -> None:
    executor = _Executor()
    executor.files["huge"] = _lines(50_001)
    assert asked_for(executor, "a", "huge", "huge", "a") == ["a", "huge", "huge"]


def test_images_with_many_users_displace_each_other() -> None:
    executor = _Executor()
    executor.files |= {"one": _lines(20_000), "two": _lines(20_000), "three": _lines(20_000)}
    assert asked_for(executor, "one", "two", "one", "three", "one", "two") == ["one", "two", "three", "two"]
