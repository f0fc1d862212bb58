from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.images.auth import Login, login_for, parse_challenges
from crishim.model.image import Credentials

HOST = "registry.example:5000"


def test_a_bearer_challenge_is_read() -> None:
    (challenge,) = parse_challenges('Bearer realm="https://auth.example/token",service="s",scope="repository:a/b:pull"')
    assert challenge.scheme == "bearer"
    assert challenge.get("realm") == "https://auth.example/token"
    assert challenge.get("scope") == "repository:a/b:pull"
    assert challenge.get("error") == ""


def test_several_challenges_are_read_in_order() -> None:
    found = parse_challenges('Basic realm="a \\"b\\"", Bearer realm=x , service="y,z", Negotiate')
    assert [challenge.scheme for challenge in found] == ["basic", "bearer", "negotiate"]
    assert found[0].get("realm") == 'a "b"'
    assert found[1].get("service") == "y,z"


@given(st.text(max_size=60))
def test_any_header_is_read_without_an_error(header: str) -> None:
    parse_challenges(header)


def test_a_header_of_blanks_is_read_in_linear_time() -> None:
    """Counted in processor time of this thread: 8,000 blanks took seconds when every split of them was tried."""
    for header in (" " * 8000 + "=", "Basic" + " " * 8000 + "=", "Bearer a=b" + " ," * 4000 + "="):
        began = time.thread_time()
        parse_challenges(header)
        assert time.thread_time() - began < 0.1


def test_a_header_that_is_too_long_has_no_challenge() -> None:
    assert parse_challenges("Basic" + " " * 8000) != []
    assert parse_challenges("Basic" + " " * 8200) == []


@pytest.mark.parametrize("token", ["a\nb", "a\x7f", "t\u00f6ken"])
def test_a_registry_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(InvalidSpec, match=r"auth\.registry_token"):
        login_for(Credentials(registry_token=token), HOST)


def test_a_server_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"auth\.server_address"):
        login_for(Credentials("u", "p", server_address="http://[x"), HOST)


def test_the_first_kind_of_credential_that_is_set_counts() -> None:
    full = Credentials("u", "p", base64.b64encode(b"a:b").decode(), "", "identity", "registry")
    assert login_for(full, HOST) == Login(registry_token="registry")
    assert login_for(Credentials("u", "p", full.auth, "", "identity"), HOST) == Login(identity_token="identity")
    assert login_for(Credentials("u", "p", full.auth), HOST) == Login("a", "b")
    assert login_for(Credentials("u", "p"), HOST) == Login("u", "p")
    assert login_for(Credentials(), HOST) is None
    assert login_for(None, HOST) is None


@pytest.mark.parametrize(
    "auth", ["???", "\u00f6", base64.b64encode(b"no colon").decode(), base64.b64encode(b"\xff:").decode()]
)
def test_auth_that_is_no_base64_of_a_login_is_refused(auth: str) -> None:
    with pytest.raises(InvalidSpec, match=r"auth\.auth"):
        login_for(Credentials(auth=auth), HOST)


def test_the_login_of_another_server_is_not_used() -> None:
    assert login_for(Credentials("u", "p", server_address="other.example"), HOST) is None
    assert login_for(Credentials("u", "p", server_address="https://registry.example:5000/v2/"), HOST) == Login("u", "p")
    assert login_for(Credentials("u", "p", server_address="https://index.docker.io/v1/"), "docker.io") == Login(
        "u", "p"
    )


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Login("u", "secret", "secret", "secret"))
    assert "secret" not in repr(Credentials("u", "secret", "secret", "", "secret", "secret"))
