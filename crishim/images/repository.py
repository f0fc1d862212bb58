"""One repository of a registry over HTTP: manifests and blobs, checked against their digests.

Blocking; the store calls it in threads. The registry is hostile: sizes are bounded before they are read, credentials go
to the registry's own host and the token server it names, never along a redirect, and no content counts before its
digest is right. Source: the OCI distribution specification and the Docker token specification.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import urllib3

from crishim.errors import InvalidSpec, NotFound, RegistryDenied, RegistryUnavailable, Unavailable
from crishim.images.auth import Challenge, Login, is_token, login_for, parse_challenges
from crishim.images.download import PartialBlob
from crishim.images.manifests import ACCEPTED, MAX_MANIFEST, Descriptor, digest_of
from crishim.images.references import Reference
from crishim.images.registry import Endpoint, RegistryClient, TokenKey, endpoints_of
from crishim.images.watch import received
from crishim.model.image import Credentials

_ATTEMPTS = 4
_MAX_REDIRECTS = 5
_MAX_ANSWER = 1 << 20
_MAX_RETRY_AFTER_S = 30.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_Answer = TypeVar("_Answer")
Response = urllib3.BaseHTTPResponse


class Repository:
    """One repository as one pull sees it. `stop`, once set, ends every call with Unavailable."""

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        credentials: Credentials | None,
        stop: threading.Event | None = None,
    ) -> None:
        self._client = client
        self._reference = reference
        self._credentials = credentials
        self._stop = stop or threading.Event()
        self._endpoints = endpoints_of(client.config, reference.host)
        #: the challenge last met, by host of the endpoint, so that later requests answer it unasked
        self._challenges: dict[str, Challenge] = {}

    def manifest(self, name: str) -> bytes:
        """A manifest by tag or digest; a digest is checked. NotFound, RegistryDenied or RegistryUnavailable."""
        return self._from_endpoints(lambda endpoint: self._small(endpoint, "manifests", name, MAX_MANIFEST))

    def blob(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        """A small blob, checked against its digest."""
        digest = descriptor.digest
        if descriptor.size > max_bytes:
            raise InvalidSpec(f"{digest} of {self._reference} has {descriptor.size} bytes, more than {max_bytes}")
        return self._from_endpoints(lambda endpoint: self._small(endpoint, "blobs", digest, max_bytes))

    def download(self, blob: PartialBlob) -> None:
        """Receive what the blob lacks, resuming by Range; it has its digest then.

        Content with another digest is dropped (RegistryUnavailable). What was received stays in the file when the
        connection fails for good (RegistryUnavailable) or the pull is stopped (Unavailable).
        """
        self._from_endpoints(lambda endpoint: self._complete(endpoint, blob))

    def pause(self, seconds: float) -> None:
        """Wait; Unavailable, at once, when the pull is stopped."""
        self._stop.wait(seconds)
        self._check_stopped()

    def _from_endpoints(self, ask: Callable[[Endpoint], _Answer]) -> _Answer:
        for endpoint in self._endpoints[:-1]:
            try:
                return ask(endpoint)
            except (NotFound, RegistryUnavailable, InvalidSpec):
                continue  # a mirror may lack the image, be away or spoil it; the registry itself decides
        return ask(self._endpoints[-1])

    def _small(self, endpoint: Endpoint, kind: str, name: str, max_bytes: int) -> bytes:
        headers = {"Accept": ", ".join(ACCEPTED)} if kind == "manifests" else {}

        def attempt() -> bytes:
            response = self._open(endpoint, f"{kind}/{name}", headers)
            return self._read_bounded(response, max_bytes, f"{kind}/{name}")

        body = self._retrying(endpoint, attempt, lambda: 0)
        if ":" in name and digest_of(body, name.partition(":")[0]) != name:  # no tag has a colon
            raise _wrong_content(endpoint, name)
        return body

    def _complete(self, endpoint: Endpoint, blob: PartialBlob) -> None:
        resumed = blob.received > 0
        self._receive(endpoint, blob)
        if resumed and not blob.is_right():
            blob.discard()  # what came from elsewhere may be what is wrong
            self._receive(endpoint, blob)
        if not blob.is_right():
            blob.discard()
            raise _wrong_content(endpoint, blob.digest)

    def _receive(self, endpoint: Endpoint, blob: PartialBlob) -> None:
        def attempt() -> None:
            if blob.missing == 0:
                return
            headers = {"Range": f"bytes={blob.received}-"} if blob.received else {}
            response = self._open(endpoint, f"blobs/{blob.digest}", headers)
            try:
                if not blob.begin(response.status, response.headers.get("Content-Range", "")):
                    raise urllib3.exceptions.ProtocolError("the registry sent another part than it was asked for")
                while piece := response.read1(1 << 20):  # what there is: a slow server hides no stop
                    self._check_stopped()
                    received(len(piece))
                    blob.receive(piece)
            finally:
                response.close()
            if blob.missing:
                raise urllib3.exceptions.ProtocolError("the connection ended early")

        self._retrying(endpoint, attempt, lambda: blob.received)

    def _retrying(self, endpoint: Endpoint, attempt: Callable[[], _Answer], progress: Callable[[], int]) -> _Answer:
        """Run `attempt` until it succeeds, at most `_ATTEMPTS` times with little progress, waiting longer each time."""
        failures = 0
        while True:
            self._check_stopped()
            before = progress()
            with self._client.watch.over(self._stop) as watched:
                try:
                    answer = attempt()
                    if not watched.cut:
                        return answer
                    reason, wait_s = "", 0.0
                except _TryAgain as error:
                    reason, wait_s = str(error), error.wait_s
                except urllib3.exceptions.HTTPError as error:
                    reason, wait_s = _describe(error), 0.0
                    if isinstance(error, urllib3.exceptions.SSLError) and not watched.cut:
                        failures = _ATTEMPTS  # a certificate does not get better
            if watched.cut:
                self._check_stopped()
                config = self._client.config
                reason = f"it sent less than {config.window_bytes} bytes in {config.window_s:g} s"
            # a byte for each attempt would go on for ever
            failures = 1 if progress() - before >= self._client.config.window_bytes else failures + 1
            if failures >= _ATTEMPTS:
                raise RegistryUnavailable(f"RegistryUnavailable: {endpoint.host}: {reason}")
            delay = self._client.config.backoff_s * 2 ** (failures - 1) * random.uniform(0.5, 1.5)
            self.pause(max(delay, min(wait_s, _MAX_RETRY_AFTER_S)))

    def _open(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> Response:
        """The response to a GET, status 200 or 206, body unread."""
        url = f"{endpoint.url}/v2/{self._reference.repository}/{quote(path, safe='/:')}"
        if endpoint.namespace:
            url += "?" + urlencode({"ns": endpoint.namespace})
        response = self._get(url, {**headers, **self._authorization(endpoint, fresh=False)})
        if response.status == HTTPStatus.UNAUTHORIZED:
            challenge = _usable_challenge(response.headers.get("WWW-Authenticate", ""))
            response.close()
            if challenge is None:
                raise self._denied(endpoint, "and names no way to log in")
            self._challenges[endpoint.host] = challenge
            response = self._get(url, {**headers, **self._authorization(endpoint, fresh=True)})
        return self._judge(endpoint, self._follow(url, response, headers), path)

    def _follow(self, url: str, response: Response, headers: Mapping[str, str]) -> Response:
        for _ in range(_MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            response.close()
            target = _joined(url, response.headers.get("Location", ""))
            if urlsplit(target).scheme not in ("http", "https") or (
                urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http"
            ):
                raise RegistryUnavailable(f"{self._reference.host} redirects from {urlsplit(url).scheme} to {target!r}")
            url = target
            response = self._get(url, dict(headers))  # without Authorization: the storage behind is somebody else
        response.close()
        raise RegistryUnavailable(f"{self._reference.host} redirects more than {_MAX_REDIRECTS} times")

    def _judge(self, endpoint: Endpoint, response: Response, path: str) -> Response:
        if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return response
        status = response.status
        detail = _registry_message(response)
        if status == HTTPStatus.NOT_FOUND:
            raise NotFound(f"{self._reference} is not in the registry: {endpoint.host} has no {path}{detail}")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise self._denied(endpoint, f"with status {status}{detail}")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return response
        if status >= 500 or status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT):
            raise _TryAgain(f"status {status}{detail}", response.headers.get("Retry-After", ""))
        raise RegistryUnavailable(f"{endpoint.host} answers status {status} for {path}{detail}")

    def _get(self, url: str, headers: Mapping[str, str]) -> Response:
        headers = {"User-Agent": "crishim", "Accept-Encoding": "identity", **headers}
        return self._request("GET", url, headers=headers, decode_content=False)

    def _request(self, method: str, url: str, **more: Any) -> Response:
        try:
            return self._client.pool(url).request(
                method, url, redirect=False, retries=False, preload_content=False, **more
            )
        except urllib3.exceptions.HTTPError:
            raise
        except ValueError:  # an address that a server gave us and that parses only at first sight
            raise _bad_address(url) from None

    def _login(self, endpoint: Endpoint) -> Login | None:
        # a mirror is sent only what names it: the registry's password is not the mirror's business
        if endpoint.namespace and not (self._credentials and self._credentials.server_address):
            return None
        return login_for(self._credentials, endpoint.host if endpoint.namespace else self._reference.host)

    def _authorization(self, endpoint: Endpoint, fresh: bool) -> dict[str, str]:
        login = self._login(endpoint)
        if login and login.registry_token:
            return {"Authorization": f"Bearer {login.registry_token}"}
        challenge = self._challenges.get(endpoint.host)
        if challenge is None:
            return {}
        if challenge.scheme == "basic":
            if login is None or login.basic is None:
                raise self._denied(endpoint, "and asks for a user and password; the pull has none for it")
            return {"Authorization": login.basic}
        realm = _joined(endpoint.url, challenge.get("realm"))
        if urlsplit(endpoint.url).scheme == "https" and urlsplit(realm).scheme != "https":
            raise self._denied(endpoint, f"and wants the login sent unencrypted to {realm!r}")
        scope = challenge.get("scope") or f"repository:{self._reference.repository}:pull"
        key = (realm, challenge.get("service"), scope, login)
        if fresh:
            self._client.forget_token(key)
        return {"Authorization": "Bearer " + self._client.token(key, lambda: self._new_token(endpoint, key))}

    def _new_token(self, endpoint: Endpoint, key: TokenKey) -> tuple[str, float]:
        realm, service, scope, login = key
        if login and login.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": login.identity_token, "client_id": "crishim"}
            fields = {**form, "service": service, "scope": scope}
            response = self._request("POST", realm, fields=fields, encode_multipart=False)
        else:
            query = urlencode([(name, value) for name, value in (("service", service), ("scope", scope)) if value])
            headers = {"Authorization": login.basic} if login and login.basic else {}
            response = self._get(f"{realm}{'&' if urlsplit(realm).query else '?'}{query}", headers)
        return self._read_token(endpoint, response)

    def _read_token(self, endpoint: Endpoint, response: Response) -> tuple[str, float]:
        status = response.status
        if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS:
            response.close()
            raise _TryAgain(f"the token server answers status {status}", response.headers.get("Retry-After", ""))
        if status != HTTPStatus.OK:
            raise self._denied(endpoint, f"through its token server, with status {status}{_registry_message(response)}")
        try:
            answer = json.loads(self._read_bounded(response, _MAX_ANSWER, "token"))
            token = answer.get("token") or answer["access_token"]
            life_s = float(answer.get("expires_in") or 60)
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._denied(endpoint, "because its token server sent no token") from None
        if not isinstance(token, str) or not is_token(token):
            raise self._denied(endpoint, "because its token server sent a token that no header can hold")
        return token, life_s

    def _read_bounded(self, response: Response, max_bytes: int, what: str) -> bytes:
        body = bytearray()
        whole = False
        try:
            while piece := response.read1(min(1 << 16, max_bytes + 1 - len(body))):
                self._check_stopped()
                received(len(piece))
                body += piece
                if len(body) > max_bytes:
                    raise InvalidSpec(f"the registry sends more than {max_bytes} bytes for {what}")
            whole = True
            return bytes(body)
        finally:
            response.release_conn() if whole else response.close()

    def _denied(self, endpoint: Endpoint, how: str) -> RegistryDenied:
        return RegistryDenied(f"{endpoint.host} does not let us pull {self._reference}, {how}")

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise Unavailable(f"the pull of {self._reference} was stopped")


class _TryAgain(Exception):
    """The registry is there and cannot answer now; `wait_s` is what it asks for, 0 when it does not say."""

    def __init__(self, reason: str, retry_after: str) -> None:
        super().__init__(reason)
        self.wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else 0.0


def _joined(base: str, target: str) -> str:
    """An address that a server names, absolute and well-formed; RegistryUnavailable when it is neither."""
    try:
        joined = urljoin(base, target)
        urlsplit(joined)
    except ValueError:
        raise _bad_address(target) from None
    return joined


def _bad_address(url: str) -> RegistryUnavailable:
    return RegistryUnavailable(f"the registry sends us to {url[:200]!r}, which is no address")


def _usable_challenge(header: str) -> Challenge | None:
    challenges = parse_challenges(header)
    bearer = [found for found in challenges if found.scheme == "bearer" and found.get("realm")]
    basic = [found for found in challenges if found.scheme == "basic"]
    return next(iter(bearer + basic), None)


def _wrong_content(endpoint: Endpoint, digest: str) -> RegistryUnavailable:
    return RegistryUnavailable(f"{endpoint.host} sent content for {digest} that has another digest")


def _registry_message(response: Response) -> str:
    """The registry's own words of an error, for a sentence of ours; "" when there are none worth showing."""
    try:
        body = response.read(1 << 14)
        error = json.loads(body)["errors"][0]
        text = str(error.get("message") or error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, urllib3.exceptions.HTTPError):
        return ""
    finally:
        response.close()
    return f": {text[:200]}" if text.isprintable() and text else ""


def _describe(error: urllib3.exceptions.HTTPError) -> str:
    """What went wrong on the connection, in words that hold no Python."""
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "its name cannot be resolved"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        refused = isinstance(error.__cause__, ConnectionRefusedError)
        return "the connection was refused" if refused else "no connection could be made"
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate or TLS settings are not acceptable"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    return "the connection broke"
