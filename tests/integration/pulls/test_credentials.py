"""Who pulls: passwords and tokens, and where they are sent."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from crishim.errors import RegistryDenied
from crishim.images.store import ImageStore
from crishim.model.image import Credentials
from tests.support.front import Answer, Request, running_front
from tests.support.pulls import BASE, TOP, forward, pull
from tests.support.registry import Registry, basic, running_registry

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]

HTPASSWD = "user:$2y$05$C6vJm0hfm.Z28fa9sa2JNujgvXyAjUDypajLhYjhn74jjtMy4TX5S\n"  # user, pass


def test_basic_authentication(tmp_path: Path, store: ImageStore) -> None:
    with running_registry(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        registry.headers = basic("user", "pass")
        registry.push_image("private", "latest", [BASE])
        reference = f"{registry.host}/private"
        for refused in (
            None,
            Credentials("user", "wrong"),
            Credentials("user", "pass", server_address="other.example"),
        ):
            with pytest.raises(RegistryDenied, match="does not let us pull"):
                pull(store, reference, refused)
        assert store.list() == []
        pull(store, reference, Credentials("user", "pass"))
        pull(store, reference, Credentials(auth=base64.b64encode(b"user:pass").decode()))


class TokenServer:
    """Answers of a registry that wants a token for each repository, and of its token server."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.host = ""
        self.good: set[str] = set()

    def __call__(self, request: Request) -> Answer:
        url = urlsplit(request.path)
        if url.path == "/token":
            return self.token(request, parse_qs(url.query or request.body.decode()))
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in self.good:
            return Answer(307, headers={"Location": f"http://{self.registry.host}{request.path}"})
        challenge = f'Bearer realm="http://{self.host}/token",service="svc",scope="repository:secret/app:pull"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    def token(self, request: Request, query: dict[str, list[str]]) -> Answer:
        allowed = request.headers.get("Authorization") == basic("user", "pass")["Authorization"]
        if not allowed and query.get("refresh_token") != ["identity"]:
            return Answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}')
        assert query["scope"] == ["repository:secret/app:pull"]
        assert query["service"] == ["svc"]
        self.good.add(f"token-{len(self.good)}")
        return Answer(200, json.dumps({"token": f"token-{len(self.good) - 1}", "expires_in": 300}).encode())


@pytest.mark.parametrize("credentials", [Credentials("user", "pass"), Credentials(identity_token="identity")])
def test_a_bearer_token_is_fetched_once_and_not_sent_along_redirects(
    registry: Registry, store: ImageStore, credentials: Credentials
) -> None:
    registry.push_image("secret/app", "latest", [BASE, TOP])
    tokens = TokenServer(registry)
    with running_front(tokens) as front:
        tokens.host = front.host
        with pytest.raises(RegistryDenied, match="who are you"):
            pull(store, f"{front.host}/secret/app", Credentials("user", "wrong"))
        front.requests.clear()
        pull(store, f"{front.host}/secret/app", credentials)
        assert len(front.seen("/token")) == 1
        tokens.good.clear()  # the server forgets: a new token is fetched
        pull(store, f"{front.host}/secret/app", credentials)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"token": "a\nb"}, "no header can hold"),
        ({"token": "t\u00f6ken"}, "no header can hold"),
        ({"token": 7}, "no header can hold"),
        ({"token": "good", "expires_in": 10**400}, "sent no token"),
    ],
)
def test_a_token_server_that_makes_no_sense_gives_a_sentence(
    store: ImageStore, answer: dict[str, object], why: str
) -> None:
    def ask(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(200, json.dumps(answer).encode())
        return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="/token"'})

    with running_front(ask) as front, pytest.raises(RegistryDenied, match=why):
        pull(store, f"{front.host}/app")


def test_a_registry_token_is_sent_as_it_is(registry: Registry, store: ImageStore) -> None:
    registry.push_image("secret/app", "latest", [BASE])
    tokens = TokenServer(registry)
    tokens.good.add("given")
    with running_front(tokens) as front:
        pull(store, f"{front.host}/secret/app", Credentials(registry_token="given"))
        assert front.seen("/token") == []


def test_authorization_stays_with_the_registry(registry: Registry, store: ImageStore) -> None:
    registry.push_image("moved", "latest", [BASE])
    with running_front(lambda request: forward(registry, request)) as storage:

        def redirect(request: Request) -> Answer:
            if "Authorization" not in request.headers:
                return Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return Answer(307, headers={"Location": f"http://{storage.host}{request.path}"})

        with running_front(redirect) as front:
            pull(store, f"{front.host}/moved", Credentials("user", "pass"))
        assert storage.requests
        assert not [request for request in storage.requests if "Authorization" in request.headers]
