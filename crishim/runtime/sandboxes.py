"""Pod sandboxes: run, stop, remove. Facts: api.proto RunPodSandbox, StopPodSandbox, RemovePodSandbox."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crishim.cgroups import effects
from crishim.errors import AlreadyExists, NotFound, Unavailable, Unsupported
from crishim.executor.client import PodSpec
from crishim.model.handler import Handler
from crishim.model.resources import Resources
from crishim.model.sandbox import NamespaceMode, Sandbox, SandboxConfig, SandboxState
from crishim.network.door import Attachment, Network
from crishim.runtime.answers import answered, end_listener, end_monitor
from crishim.runtime.executor import Executor, Monitor
from crishim.runtime.exits import Exits
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.places import Places
from crishim.runtime.removal import Removal
from crishim.runtime.selinux import SELinux
from crishim.runtime.settings import Settings
from crishim.runtime.steps import reached
from crishim.runtime.stopping import Stopping
from crishim.runtime.undo import Undo
from crishim.spec import sandbox as spec
from crishim.spec.cgroup import pod_cgroup
from crishim.store import codec
from crishim.store.durable import DurableStore, SandboxReservation
from crishim.store.store import Store

_NETLINK_ROUTE = 0


class Sandboxes:
    """The use cases of `cri.use_cases.Sandboxes`."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        durable: DurableStore,
        boot_id: str,
        executor: Executor,
        network: Network,
        operations: Operations,
        live: Live,
        places: Places,
        exits: Exits,
        stopping: Stopping,
        removal: Removal,
        selinux: SELinux,
        helper: Helper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._durable = durable
        self._boot_id = boot_id
        self._executor = executor
        self._network = network
        self._operations = operations
        self._live = live
        self._places = places
        self._exits = exits
        self._stopping = stopping
        self._removal = removal
        self._selinux = selinux
        self._helper = helper

    # -- run

    async def run(self, config: SandboxConfig) -> str:
        """Id of a READY sandbox. A retry joins, or gets the sandbox that its caller did not wait for."""
        return await self._operations.run(
            operation_key(config),
            lambda operation: self._run(config, operation),
            stage="run_sandbox.reserved",
            request=config,
            still_valid=lambda sandbox_id: is_ready(self._store, sandbox_id),
        )

    async def _run(self, config: SandboxConfig, operation: Operation) -> str:
        taken = self._store.find_sandbox((config.name, config.namespace, config.uid, config.attempt))
        if taken is not None:
            raise AlreadyExists(
                f"config.metadata: {config.namespace}/{config.name} with uid {config.uid!r} and attempt"
                f" {config.attempt} is sandbox {taken.id}"
            )
        handler = self._settings.handler(config.runtime_handler)
        plan, resolv_conf = spec.sandbox_plan(config, handler), spec.resolv_conf(config.dns)
        if plan.users is not None and self._settings.no_user_namespaces:
            raise Unsupported(
                "config.linux.security_context.namespace_options.userns_options: this node cannot do"
                f" {self._settings.no_user_namespaces}"
            )
        if plan.network:
            await self._require_network()
        self._selinux.check_sandbox(config.security.selinux)
        with self._selinux.labelled(self._planned(config, plan, handler), self._store.list_sandboxes) as sandbox:
            operation.concern(sandbox.id)
            await self._make(sandbox, plan, resolv_conf, operation)
        return sandbox.id

    async def _make(
        self, sandbox: Sandbox, plan: spec.SandboxPlan, resolv_conf: str | None, operation: Operation
    ) -> None:
        await self._durable.reserve_sandbox(self._reservation(sandbox))
        reached("run_sandbox.reserved")
        async with Undo(
            lambda: self._durable.release_sandbox(sandbox.id), lambda problems: self._keep(sandbox, problems)
        ) as undo:
            operation.enter("run_sandbox.directory")
            directory = self._places.make_sandbox(sandbox.id)
            undo.push("the directory", lambda: self._helper.run(self._places.remove_sandbox, sandbox.id))
            self._write_files(sandbox, resolv_conf)
            if not self._has_cgroup(sandbox):
                self._places.own_cgroup(sandbox.id)
            reached("run_sandbox.directory")
            operation.enter("run_sandbox.monitor")
            monitor = await self._start_monitor(sandbox, directory, plan)
            undo.push("the monitor", lambda: self._stop_monitor(sandbox))
            reached("run_sandbox.monitor")
            if plan.network:
                operation.enter("run_sandbox.network")
                undo.push("the network", lambda: self._detach(sandbox))
                sandbox = await self._attach(sandbox, monitor)
                reached("run_sandbox.network")
            operation.enter("run_sandbox.status")
            self._write_hosts(sandbox)
            self._store.put_sandbox(sandbox)
            undo.keep()
        reached("run_sandbox.status")

    async def _require_network(self) -> None:
        readiness = await self._network.ready()
        if not readiness.ready:
            raise Unavailable(f"the pod network is not ready: {readiness.message}")

    def _planned(self, config: SandboxConfig, plan: spec.SandboxPlan, handler: Handler) -> Sandbox:
        sandbox_id = secrets.token_hex(32)
        return Sandbox(
            id=sandbox_id,
            config=config,
            state=SandboxState.READY,
            created_at_ns=time.time_ns(),
            netns_path=f"/run/netns/{self._settings.netns_prefix}-{sandbox_id}" if plan.network else None,
            cgroup_path=pod_cgroup(
                config.cgroup_parent, self._settings.cgroup_root, sandbox_id, self._settings.cgroup_driver
            ),
            handler=handler,
        )

    def _reservation(self, sandbox: Sandbox) -> SandboxReservation:
        config = sandbox.config
        return SandboxReservation(
            id=sandbox.id,
            name=config.name,
            namespace=config.namespace,
            uid=config.uid,
            attempt=config.attempt,
            netns_path=sandbox.netns_path,
            network_mode=self._settings.network_mode if sandbox.netns_path else "host",
            network_config=b"{}",
            monitor_socket=str(self._places.sandbox(sandbox.id) / "monitor.sock"),
            runtime_handler=config.runtime_handler,
            boot_id=self._boot_id,
            config=codec.to_bytes(config),
        )

    def _has_cgroup(self, sandbox: Sandbox) -> bool:
        """Whether the kubelet made the pod's cgroup; pods made by hand name one that is not there."""
        directories = effects.directories(self._executor.hierarchy, sandbox.cgroup_path)
        return any(os.path.isdir(directory) for _, directory in directories)

    async def _start_monitor(self, sandbox: Sandbox, directory: Path, plan: spec.SandboxPlan) -> Monitor:
        pod = PodSpec(
            network=plan.network,
            netns_path=sandbox.netns_path,
            ipc=plan.ipc,
            uts=plan.uts,
            shared_pid=plan.shared_pid,
            hostname=plan.hostname,
            sysctls=plan.sysctls,
            uid_mappings=plan.users.uids if plan.users else (),
            gid_mappings=plan.users.gids if plan.users else (),
            mount_label=_mount_label(sandbox),
        )
        monitor = await self._executor.start_monitor(sandbox.id, directory, pod)
        self._exits.watch_monitor(monitor)
        return monitor

    async def _attach(self, sandbox: Sandbox, monitor: Monitor) -> Sandbox:
        assert sandbox.netns_path is not None
        netns = await answered(sandbox.id, monitor.open_netns())
        try:
            netlink = await answered(
                sandbox.id, monitor.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
            )
            try:
                result = await self._network.attach(
                    Attachment(
                        sandbox.id, sandbox.config, sandbox.netns_path, netns, netlink, cgroup_path=sandbox.cgroup_path
                    ),
                    deadline_s=self._settings.network_deadline_s,
                )
            finally:
                os.close(netlink)
        finally:
            os.close(netns)
        return replace(sandbox, ips=result.ips)

    def _write_files(self, sandbox: Sandbox, resolv_conf: str | None) -> None:
        if resolv_conf is None:
            with suppress(OSError):
                resolv_conf = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="surrogateescape")
        label = _mount_label(sandbox)
        self._places.write_file(sandbox.id, "resolv.conf", resolv_conf or "", label)
        self._places.write_file(sandbox.id, "hostname", hostname_of(sandbox) + "\n", label)

    def _write_hosts(self, sandbox: Sandbox) -> None:
        """For containers that bring no /etc/hosts of their own; the kubelet always sends one."""
        if sandbox.config.security.namespaces.network is NamespaceMode.NODE:
            with suppress(OSError):
                text = Path("/etc/hosts").read_text(encoding="utf-8", errors="surrogateescape")
                self._places.write_file(sandbox.id, "hosts", text, _mount_label(sandbox))
            return
        text = spec.hosts_file(hostname_of(sandbox), sandbox.ips)
        self._places.write_file(sandbox.id, "hosts", text, _mount_label(sandbox))

    async def _keep(self, sandbox: Sandbox, problems: str) -> None:
        """What could not be taken back stays visible as NOTREADY, so that the kubelet stops and removes it again."""
        self._store.put_sandbox(replace(sandbox, state=SandboxState.NOTREADY, reason=problems))

    # -- stop and remove

    async def stop(self, sandbox_id: str) -> None:
        """Kill the containers, take the network down, NOTREADY. Nothing to do when it is unknown."""
        try:
            sandbox = self._store.resolve_sandbox(sandbox_id)
        except NotFound:
            return
        await self._operations.run(
            ("StopPodSandbox", sandbox.id),
            lambda operation: self._stop(sandbox, operation),
            stage="stop_sandbox.status",
        )

    async def _stop(self, sandbox: Sandbox, operation: Operation) -> None:
        # first, so that nothing is created or started from here on
        self._store.update_sandbox(sandbox.id, lambda old: replace(old, state=SandboxState.NOTREADY))
        reached("stop_sandbox.status")
        operation.enter("stop_sandbox.killed")
        await self._stopping.kill_all(sandbox.id)
        reached("stop_sandbox.killed")
        if sandbox.netns_path is not None:
            operation.enter("stop_sandbox.network")
            await self._detach(sandbox)
            reached("stop_sandbox.network")
        operation.enter("stop_sandbox.monitor")
        await self._stop_monitor(sandbox)
        reached("stop_sandbox.monitor")

    async def remove(self, sandbox_id: str) -> None:
        """Stop, remove the containers and all that is left. Nothing to do when it is unknown."""
        try:
            sandbox = self._store.resolve_sandbox(sandbox_id)
        except NotFound:
            return
        await self.stop(sandbox.id)
        await self._operations.run(
            ("RemovePodSandbox", sandbox.id),
            lambda operation: self._remove(sandbox, operation),
            stage="remove_sandbox.containers",
        )

    async def _remove(self, sandbox: Sandbox, operation: Operation) -> None:
        for container in self._store.list_containers(sandbox.id):
            await self._removal.remove(container.id)
        reached("remove_sandbox.containers")
        operation.enter("remove_sandbox.cgroup")
        if self._places.owns_cgroup(sandbox.id):
            await self._removal.remove_cgroup(f"sandbox {sandbox.id}", sandbox.cgroup_path)
        reached("remove_sandbox.cgroup")
        self._store.remove_sandbox(sandbox.id)
        reached("remove_sandbox.status")
        operation.enter("remove_sandbox.directory")
        await self._helper.run(self._places.remove_sandbox, sandbox.id)
        reached("remove_sandbox.directory")
        operation.enter("remove_sandbox.released")
        await self._durable.release_sandbox(sandbox.id)
        reached("remove_sandbox.released")

    async def _detach(self, sandbox: Sandbox) -> None:
        """From what the network recorded; errors reach the kubelet, which repeats the call."""
        path = sandbox.netns_path
        present = path if path is not None and os.path.exists(path) else None
        await self._network.detach(sandbox.id, present, deadline_s=self._settings.network_deadline_s)

    async def _stop_monitor(self, sandbox: Sandbox) -> None:
        monitor = self._live.find_monitor(sandbox.id)
        if monitor is not None:
            await end_monitor(monitor)
            self._live.drop_monitor(sandbox.id)
        else:
            await end_listener(self._places.sandbox(sandbox.id))
        await self._removal.remove_pin(sandbox.netns_path)

    async def update_resources(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Remember the sums of the pod after a resize; its cgroup was written by the kubelet."""
        sandbox = self._store.resolve_sandbox(sandbox_id)
        self._store.update_sandbox(
            sandbox.id, lambda old: replace(old, config=_with_sums(old.config, overhead, resources))
        )

    # -- read

    async def get(self, sandbox_id: str) -> Sandbox:
        """By id or unique prefix; NotFound when unknown."""
        return self._store.resolve_sandbox(sandbox_id)


def is_ready(store: Store, sandbox_id: str) -> bool:
    """Whether the sandbox exists and is READY."""
    with suppress(NotFound):
        return store.get_sandbox(sandbox_id).state is SandboxState.READY
    return False


def operation_key(config: SandboxConfig) -> tuple[str, str, str, str, int]:
    """Key of the run of this identity."""
    return ("RunPodSandbox", config.name, config.namespace, config.uid, config.attempt)


def _mount_label(sandbox: Sandbox) -> str | None:
    return None if sandbox.selinux is None else sandbox.selinux.mount


def _with_sums(config: SandboxConfig, overhead: Resources | None, resources: Resources | None) -> SandboxConfig:
    return replace(config, overhead=overhead or config.overhead, resources=resources or config.resources)


def hostname_of(sandbox: Sandbox) -> str:
    """What gethostname(2) says inside the pod."""
    if sandbox.config.security.namespaces.network is NamespaceMode.NODE or not sandbox.config.hostname:
        return os.uname().nodename
    return sandbox.config.hostname
