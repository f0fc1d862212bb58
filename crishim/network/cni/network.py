"""`CniNetwork`, the door's `Network` over the node's CNI plugins.

A chain's ADD runs its plugins in order, each given the answer of the one before; DEL runs them in reverse from the
record of the ADD. The directory of configurations is looked at whenever somebody asks, so a change needs no restart.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crishim.errors import CrishimError, TimedOut, Unavailable
from crishim.network import rtnetlink
from crishim.network.cni.arguments import capability_args, cni_args, runtime_config
from crishim.network.cni.conf import NetworkConf, PluginConf, Signature, load, signature
from crishim.network.cni.gate import Gate
from crishim.network.cni.plugin import find_plugin, run_plugin
from crishim.network.cni.records import AttachmentRecord, AttachmentRecords
from crishim.network.cni.result import network_result, parse_result
from crishim.network.deadline import deadline
from crishim.network.door import POD_INTERFACE, Attachment, NetworkObject, NetworkResult, Readiness
from crishim.network.netlink_socket import NETLINK_ROUTE, NetlinkSocket

logger = logging.getLogger(__name__)

#: the kubelet asks for Status every 5 s, and STATUS starts each plugin
_STATUS_EVERY_S = 10.0
_STATUS_DEADLINE_S = 5.0
#: an ADD that fails or is too late is undone within this time
_UNDO_DEADLINE_S = 30.0
_VALID_ATTACHMENTS = "cni.dev/valid-attachments"


class CniNetwork:
    """See `Network` for the contract of each method that has no words here."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path], records: Path) -> None:
        """`records` is a directory that outlives a reboot; it is made when it is needed."""
        self._conf_dir = conf_dir
        self._bin_dirs = tuple(bin_dirs)
        self._records = AttachmentRecords(records)
        self._gate = Gate()
        #: of the directory when `_loaded` was read
        self._signature: Signature | None = None
        self._loaded = load(conf_dir)
        #: answer of the last STATUS, and when it was asked (monotonic)
        self._status = Readiness(True)
        self._status_at: float | None = None

    def configure(self, conf_dir: Path, bin_dirs: Sequence[Path]) -> None:
        """Other directories for calls from now on; what is attached keeps the network that it was attached to."""
        self._bin_dirs = tuple(bin_dirs)
        if conf_dir != self._conf_dir:
            self._conf_dir, self._signature = conf_dir, None

    async def open(self) -> None:
        """Unsupported when a newer crishim wrote what is on record."""
        self._records.refuse_newer()
        self._reload()

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def ready(self) -> Readiness:
        """Not ready without a valid configuration, without its plugins, or when one of them says so (STATUS)."""
        network = self._reload()
        if network is None:
            return Readiness(False, "NetworkPluginNotReady", self._missing())
        try:
            for plugin in network.plugins:
                find_plugin(plugin.type, self._bin_dirs)
        except Unavailable as error:
            return Readiness(False, "NetworkPluginNotReady", str(error))
        if network.has_status:
            now = time.monotonic()
            if self._status_at is None or now - self._status_at >= _STATUS_EVERY_S:
                self._status, self._status_at = await self._ask_status(network), now
            return self._status
        return Readiness(True)

    async def attach(self, attachment: Attachment, *, deadline_s: float) -> NetworkResult:
        network = self._reload()
        if network is None:
            raise Unavailable(self._missing())
        record = AttachmentRecord(
            sandbox_id=attachment.sandbox_id,
            network=network,
            netns_path=attachment.netns_path,
            cni_args=cni_args(attachment.sandbox_id, attachment.sandbox),
            arguments=capability_args(attachment.sandbox, attachment.cgroup_path),
        )
        async with deadline(deadline_s, f"the network of sandbox {record.sandbox_id} was not set up"):
            # left by an attach that a crash cut off
            await self._delete(record.sandbox_id, attachment.netns_path)
            _set_loopback_up(attachment.pod_netlink_fd)
            async with self._gate.shared():
                return await self._add(record)

    async def detach(self, sandbox_id: str, netns_path: str | None, *, deadline_s: float) -> None:
        async with deadline(deadline_s, f"the network of sandbox {sandbox_id} was not removed"):
            await self._delete(sandbox_id, netns_path)

    async def check(self, sandbox_id: str, netns_path: str, *, deadline_s: float) -> None:
        """Plugins are asked when the configuration has CHECK (0.4.0, and not disabled)."""
        record = self._records.find(sandbox_id)
        if record is None or record.result is None:
            raise Unavailable(f"sandbox {sandbox_id} is not attached to a CNI network")
        if not record.network.has_check:
            return
        async with deadline(deadline_s, f"the network of sandbox {sandbox_id} was not checked"):
            for plugin in record.network.plugins:
                await self._run("CHECK", plugin, record, netns_path, record.result)

    async def survey(self, *, deadline_s: float) -> tuple[NetworkObject, ...]:
        """The records; what plugins keep is theirs."""
        return tuple(NetworkObject("attachment", sandbox_id, sandbox_id) for sandbox_id in self._records.ids())

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        """DEL for each record that is not live, then GC where the configuration has it (1.1.0)."""
        live = frozenset(live_ids)
        failed = []
        async with deadline(deadline_s, "the leftovers of networks were not removed"):
            for sandbox_id in list(self._records.ids()):
                if sandbox_id not in live:
                    try:
                        await self._delete(sandbox_id, None)
                    except CrishimError as error:
                        logger.warning("network of sandbox %s: %s", sandbox_id, error)
                        failed.append(sandbox_id)
            network = self._reload()
            if network is not None and network.has_gc:
                async with self._gate.alone():
                    await self._collect(network)
        return tuple(failed)

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        """Addresses are the plugins' matter: they learn the node's range from their own configuration."""

    # -- chains

    async def _add(self, record: AttachmentRecord) -> NetworkResult:
        self._records.write(record)
        result: dict[str, Any] | None = None
        try:
            for plugin in record.network.plugins:
                result = parse_result(await self._run("ADD", plugin, record, record.netns_path, result))
            answer = network_result(result or {})
            self._records.write(replace(record, result=result))
            return answer
        except BaseException as error:
            await self._undo(record, error)
            raise

    async def _undo(self, record: AttachmentRecord, error: BaseException) -> None:
        try:
            async with deadline(_UNDO_DEADLINE_S, "it was not undone"):
                await self._delete(record.sandbox_id, record.netns_path)
        except CrishimError as another:
            error.add_note(f"and the attachment was not undone: {another}")

    async def _delete(self, sandbox_id: str, netns_path: str | None) -> None:
        record = self._records.find(sandbox_id)
        if record is None:
            return
        for plugin in reversed(record.network.plugins):
            await self._run("DEL", plugin, record, netns_path or "", record.result)
        self._records.remove(sandbox_id)

    async def _collect(self, network: NetworkConf) -> None:
        """A plugin that cannot collect is logged: what it left is tried again at the next time."""
        valid = [{"containerID": sandbox_id, "ifname": POD_INTERFACE} for sandbox_id in self._records.ids()]
        for plugin in network.plugins:
            try:
                await self._execute("GC", plugin, network, {}, {_VALID_ATTACHMENTS: valid})
            except Unavailable as error:
                logger.warning("%s", error)

    async def _ask_status(self, network: NetworkConf) -> Readiness:
        try:
            async with deadline(_STATUS_DEADLINE_S, f"the plugins of CNI network {network.name!r} did not answer"):
                for plugin in network.plugins:
                    await self._execute("STATUS", plugin, network, {}, {})
        except (Unavailable, TimedOut) as error:
            return Readiness(False, "NetworkPluginNotReady", str(error))
        return Readiness(True)

    # -- one plugin

    async def _run(
        self,
        command: str,
        plugin: PluginConf,
        record: AttachmentRecord,
        netns_path: str,
        previous: Mapping[str, Any] | None,
    ) -> bytes:
        environment = {
            "CNI_CONTAINERID": record.sandbox_id,
            "CNI_NETNS": netns_path,
            "CNI_IFNAME": POD_INTERFACE,
            "CNI_ARGS": record.cni_args,
        }
        extra: dict[str, Any] = {}
        # before 0.4.0 only ADD knows it
        if previous is not None and (command == "ADD" or record.network.has_previous_result):
            extra["prevResult"] = previous
        if arguments := runtime_config(plugin, record.arguments):
            extra["runtimeConfig"] = arguments
        return await self._execute(command, plugin, record.network, environment, extra)

    async def _execute(
        self,
        command: str,
        plugin: PluginConf,
        network: NetworkConf,
        environment: Mapping[str, str],
        extra: Mapping[str, Any],
    ) -> bytes:
        path = find_plugin(plugin.type, self._bin_dirs)
        request = {**plugin.fields, "name": network.name, "cniVersion": network.version, **extra}
        search = ":".join(map(str, self._bin_dirs))
        variables = {"CNI_COMMAND": command, "CNI_PATH": search, **environment}
        return await run_plugin(path, variables, json.dumps(request).encode())

    # -- configuration

    def _reload(self) -> NetworkConf | None:
        current = signature(self._conf_dir)
        if current != self._signature:
            self._signature, self._loaded = current, load(self._conf_dir)
            self._status_at = None
            for problem in self._loaded.problems:
                logger.warning("CNI configuration ignored: %s", problem)
        return self._loaded.network

    def _missing(self) -> str:
        return f"no CNI configuration in {self._conf_dir}" + "".join(f"; {each}" for each in self._loaded.problems)


def _set_loopback_up(pod_netlink_fd: int) -> None:
    """In-process, so that no loopback plugin is needed."""
    try:
        with NetlinkSocket.borrow(pod_netlink_fd, NETLINK_ROUTE) as pod:
            pod.request([rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX)])
    except OSError as error:
        raise Unavailable(f"the loopback device of the pod cannot be set up: {error.strerror}") from error
