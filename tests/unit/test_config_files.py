"""Drop-in files, where each value is from, runtime handlers, and the configuration written out again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crishim.cli.main import main
from crishim.config import Address, Config, changes, flat, load, name_of, read, toml_value
from crishim.config.files import COMMAND_LINE
from crishim.config.keys import HANDLER_CHECKS
from crishim.errors import InvalidSpec, NotFound
from crishim.model.handler import PLAIN, Handler
from crishim.model.process import Rlimit

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"
FULL = """
[server]
listen = "unix:///run/x.sock"
metrics = ""
[streaming]
listen = "[::1]:10010"
[images]
insecure = ["a.b"]
mirrors = {"docker.io" = ["https://m"], "a.b" = ["https://n/x"]}
ca_files = {"q.r:5000" = "/ca.pem"}
[limits.rlimits]
NOFILE = [10, -1]
[containers]
default_runtime_handler = "fast"
[runtimes.fast]
capabilities = ["CAP_CHOWN", "CAP_KILL"]
rlimits.CORE = [0, 0]
sysctls = {"net.core.somaxconn" = "1024"}
env = {"A b" = 'c"\\d'}
pids_limit = 100
allowed_annotations = ["crishim.io/ulimit.*"]
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def written(config: Config) -> str:
    return "\n".join(f"{name_of(key)} = {toml_value(value)}" for key, value in flat(config).items())


def test_later_drop_in_files_win_and_tables_are_merged(tmp_path: Path) -> None:
    main_file = write(tmp_path / "c.toml", '[images]\ninsecure = ["a.b"]\nmirrors = {"x.y" = ["https://1"]}\n')
    write(tmp_path / "c.toml.d/20.toml", '[images]\ninsecure = ["c.d"]\n[stop]\nkill_wait_s = 2\n')
    write(tmp_path / "c.toml.d/10.toml", '[images]\ninsecure = []\nmirrors = {"z.z" = ["https://2"]}\n')
    write(tmp_path / "c.toml.d/30.toml~", "no TOML")
    write(tmp_path / "c.toml.d/.30.toml", "no TOML")
    found = load(main_file)
    assert found.images.insecure == ("c.d",) and found.stop.kill_wait_s == 2
    assert found.images.mirrors == {"x.y": ("https://1",), "z.z": ("https://2",)}


def test_each_value_knows_the_file_that_it_is_from(tmp_path: Path) -> None:
    main_file = write(tmp_path / "c.toml", '[images.mirrors]\n"x.y" = ["https://1"]\n[stop]\nkill_wait_s = 1\n')
    drop_in = write(tmp_path / "c.toml.d/10.toml", '[images.mirrors]\n"z.z" = ["https://2"]\n[stop]\nkill_wait_s = 2\n')
    assert read(main_file, {"server.log_level": "debug"}).origins == {
        ("images", "mirrors", "x.y"): str(main_file),
        ("images", "mirrors", "z.z"): str(drop_in),
        ("stop", "kill_wait_s"): str(drop_in),
        ("server", "log_level"): COMMAND_LINE,
    }


def test_drop_in_files_count_without_the_file(tmp_path: Path) -> None:
    write(tmp_path / "c.toml.d/10.toml", "[stop]\nkill_wait_s = 2\n")
    assert read(tmp_path / "c.toml", optional=True).config.stop.kill_wait_s == 2
    assert read(tmp_path / "d.toml", optional=True).config == Config()
    with pytest.raises(NotFound, match=r"c\.toml does not exist"):
        load(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stop = ", "20.toml is not TOML"),
        ("[stop]\nkill_wait_s = 0", "20.toml: stop.kill_wait_s: 0 is not a number of seconds"),
        ("stop = 3", "20.toml: stop: 3 is not a table"),
        ("[stop]\ncolour = 3", "20.toml: stop.colour: there is no such key"),
    ],
)
def test_a_wrong_drop_in_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    main_file = write(tmp_path / "c.toml", "[stop]\nkill_wait_s = 1\n")
    write(tmp_path / "c.toml.d/20.toml", text)
    with pytest.raises(InvalidSpec, match=re.escape(sentence)):
        load(main_file)


def test_drop_in_files_that_are_no_directory_are_an_error(tmp_path: Path) -> None:
    main_file = write(tmp_path / "c.toml", "")
    write(tmp_path / "c.toml.d", "")
    with pytest.raises(InvalidSpec, match=r"c\.toml\.d cannot be read: Not a directory"):
        load(main_file)


def test_what_is_written_out_is_read_to_an_equal_configuration(tmp_path: Path) -> None:
    for text in ("", FULL):
        config = load(write(tmp_path / "a.toml", text))
        assert load(write(tmp_path / "b.toml", written(config))) == config


def test_changes_are_the_keys_that_differ_came_or_went(tmp_path: Path) -> None:
    old = load(write(tmp_path / "a.toml", FULL))
    new = load(write(tmp_path / "b.toml", FULL.replace("= 100", "= 7").replace(', "a.b" = ["https://n/x"]', "")))
    assert changes(old, old) == ()
    assert [name_of(key) for key in changes(old, new)] == ['images.mirrors."a.b"', "runtimes.fast.pids_limit"]
    assert {key[0] for key in changes(old, Config())} >= {"server", "images", "runtimes"}


def test_the_command_shows_each_value_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.toml", "[stop]\nkill_wait_s = 1\n")
    assert main(["config", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"\nstop.kill_wait_s = 1.0  # {path}\n" in shown and '\nnetwork.mode = "cni"\n' in shown
    assert load(write(tmp_path / "again.toml", shown)) == load(path)
    assert main(["config", "--json", "--config", str(path)]) == 0
    assert f'"from": "{path}"' in capsys.readouterr().out
    path.write_text("[stop]\nkill_wait_s = 0\n")
    assert main(["config", "--config", str(path)]) == 1
    assert f"crishim: configuration {path}: stop.kill_wait_s" in capsys.readouterr().err


# -- runtime handlers


def test_the_first_handler_is_always_there_and_can_be_changed(tmp_path: Path) -> None:
    assert Config().runtimes == {"crishim": PLAIN}
    assert load(write(tmp_path / "a.toml", "[runtimes.x]\n")).runtimes == {"crishim": PLAIN, "x": PLAIN}
    changed = load(write(tmp_path / "a.toml", "[runtimes.crishim]\npids_limit = 5\n"))
    assert changed.runtimes == {"crishim": Handler(pids_limit=5)}


def test_a_handler_has_its_options(tmp_path: Path) -> None:
    config = load(write(tmp_path / "a.toml", FULL))
    assert config.server.metrics is None and config.streaming.listen == Address("::1", 10010)
    assert config.runtimes["fast"] == Handler(
        capabilities=("CAP_CHOWN", "CAP_KILL"),
        rlimits=(Rlimit("RLIMIT_CORE", 0, 0),),
        sysctls={"net.core.somaxconn": "1024"},
        env={"A b": 'c"\\d'},
        pids_limit=100,
        allowed_annotations=("crishim.io/ulimit.*",),
    )


@pytest.mark.parametrize(
    ("runtimes", "sentence"),
    [
        (1, "runtimes: 1 is not a table"),
        ({"x": 1}, "runtimes.x: 1 is not a table"),
        ({"A_b": {}}, 'runtimes: "A_b" is not a name like "crishim"'),
        ({"x": {"colour": 1}}, "runtimes.x.colour: there is no such key; runtimes.x has allowed_annotations, "),
        ({"x": {"capabilities": ["chown"]}}, 'runtimes.x.capabilities[0]: "chown" is not a capability'),
        ({"x": {"seccomp_profile": "/p"}}, 'runtimes.x.seccomp_profile: "/p" is not a relative path'),
        ({"x": {"seccomp_profile": "a/../../p"}}, "is not a relative path"),
        ({"x": {"unset_seccomp_profile": "off"}}, "is not one of unconfined, runtime/default"),
        ({"x": {"apparmor_profile": "a\nb"}}, "runtimes.x.apparmor_profile"),
        ({"x": {"no_new_privileges": 1}}, "runtimes.x.no_new_privileges: 1 is not true or false"),
        ({"x": {"rlimits": {"NOFILE": [2, 1]}}}, "runtimes.x.rlimits.NOFILE: [2, 1] is not a soft limit"),
        ({"x": {"sysctls": {"net.a": 1}}}, 'runtimes.x.sysctls."net.a": 1 is not a text'),
        ({"x": {"env": {"a=b": "c"}}}, 'runtimes.x.env: "a=b" is not the name of a variable'),
        ({"x": {"pids_limit": -1}}, "runtimes.x.pids_limit: -1 is not a whole number"),
        ({"x": {"min_oom_score_adj": -1001}}, "runtimes.x.min_oom_score_adj"),
        ({"x": {"allowed_annotations": ["*"]}}, 'runtimes.x.allowed_annotations[0]: "*" is not an annotation'),
    ],
)
def test_a_wrong_handler_is_named(runtimes: object, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(sentence)):
        load(None, {"runtimes": runtimes})


def test_the_default_handler_is_one_that_is_there() -> None:
    with pytest.raises(InvalidSpec, match=r'default_runtime_handler: "fast" is not one of crishim'):
        load(None, {"containers.default_runtime_handler": "fast"})


def test_every_option_of_a_handler_is_in_the_document() -> None:
    documented = set(re.findall(r"^\| `runtimes\.NAME\.([a-z_]+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    assert documented == set(HANDLER_CHECKS) == set(Handler.__dataclass_fields__)


def test_annotations_are_allowed_by_name_or_by_the_begin_of_it() -> None:
    handler = Handler(allowed_annotations=("a/b", "c/*"))
    assert [handler.allows(name) for name in ("a/b", "a/bc", "c/", "c/d", "cc/d", "")] == [
        True, False, True, True, False, False
    ]  # fmt: skip
