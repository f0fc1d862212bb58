"""SELinux of the node: whether containers get contexts, which ones, and which pod has which level. Blocking, but short.

The policy's own word on containers is its file `contexts/lxc_contexts`; without it the names of container-selinux are
tried, which every policy that knows containers has.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from crishim.errors import InvalidSpec, Unsupported
from crishim.executor.client import why_label_refused
from crishim.model.sandbox import PodLabels, Sandbox, SELinuxOptions
from crishim.spec.selinux import (
    Context,
    DefaultLabels,
    categories,
    free_level,
    parse,
    pod_labels,
    refuse_without_labels,
    sensitivity,
)

OFF, AUTO, ON = "off", "auto", "on"
_SELINUXFS = Path("/sys/fs/selinux")
_ETC = Path("/etc/selinux")
_OURS = Path("/proc/self/attr/current")
_LINE = re.compile(r'\s*(\w+)\s*=\s*"?([^"\s]+)"?\s*')


class SELinux:
    """What is known of this node, found once at the start; and the levels of pods that are being run."""

    def __init__(
        self,
        mode: str,
        *,
        selinuxfs: Path = _SELINUXFS,
        etc: Path = _ETC,
        ours: Path = _OURS,
        why_refused: Callable[[str], str] = why_label_refused,
    ) -> None:
        """mode: "auto", "on" or "off"; ours: the file with the context of this process."""
        self.enabled = (selinuxfs / "enforce").exists()
        #: why containers get no contexts although they should
        self.problem = ""
        #: None: containers get none
        self.defaults: DefaultLabels | None = None
        #: context of image layers on the disk, which every container may read and execute
        self.layers = ""
        self._mode = mode
        self._selinuxfs = selinuxfs
        self._etc = etc
        self._ours = ours
        self._why_refused = why_refused
        #: by the id of a sandbox that has no status yet
        self._promised: dict[str, frozenset[int]] = {}

    def prepare(self) -> None:
        """Look for the policy's contexts. Unsupported when they are asked for by configuration and cannot be."""
        if self._mode == OFF:
            return
        if self.enabled:
            self._look()
        if self._mode == ON and self.defaults is None:
            why = self.problem or "SELinux is not enabled on this node"
            raise Unsupported(f'server.selinux: "on", but {why}')

    def _look(self) -> None:
        try:
            if ":" not in self._ours.read_text():
                self.problem = "the kernel has no SELinux policy loaded"
                return
            named = self._named()
            process = parse(named.get("process", "system_u:system_r:container_t:s0"))
            file = parse(named.get("file", "system_u:object_r:container_file_t:s0"))
            layers = parse(named.get("ro_file", "system_u:object_r:container_ro_file_t:s0"))
            if (self._selinuxfs / "mls").read_text().strip() == "0":
                process, file = replace(process, level=""), replace(file, level="")
        except (OSError, InvalidSpec) as error:
            self.problem = f"the contexts of containers cannot be found: {error}"
            return
        base = sensitivity(process.level)
        for context in (process, file):
            if self._why_refused(str(context)):
                self.problem = (
                    f"the policy has no context {context} (install the policy of containers, container-selinux)"
                )
                return
        layers = replace(layers, level=file.level and base)
        self.layers = str(replace(file, level=layers.level) if self._why_refused(str(layers)) else layers)
        privileged = replace(process, type="spc_t", level=base)
        self.defaults = DefaultLabels(process, file, None if self._why_refused(str(privileged)) else privileged)

    def _named(self) -> dict[str, str]:
        """What the policy's file says; nothing when there is none."""
        with suppress(FileNotFoundError):
            kind = _assignments((self._etc / "config").read_text()).get("SELINUXTYPE", "")
            if kind and "/" not in kind:
                return _assignments((self._etc / kind / "contexts/lxc_contexts").read_text())
        return {}

    def check_sandbox(self, asked: SELinuxOptions | None) -> None:
        """Unsupported for a pod that names a context on a node that should give them, and cannot."""
        refuse_without_labels("config.linux.security_context", asked, self.problem)

    @contextmanager
    def labelled(self, sandbox: Sandbox, others: Callable[[], Iterable[Sandbox]]) -> Iterator[Sandbox]:
        """The sandbox with its contexts, with a level that none of the others has; it keeps them with its status.

        Until the end of the block, when it has a status or is gone, nobody else gets that level. InvalidSpec names what
        the policy does not know.
        """
        if self.defaults is None:
            yield sandbox
            return
        asked = sandbox.config.security.selinux
        level = self._level(asked, others)
        labels = pod_labels(asked, self.defaults, level)
        if asked is not None:
            self.require("config.linux.security_context", labels)
        self._promised[sandbox.id] = categories(level)
        try:
            yield replace(sandbox, selinux=labels)
        finally:
            del self._promised[sandbox.id]

    def _level(self, asked: SELinuxOptions | None, others: Callable[[], Iterable[Sandbox]]) -> str:
        assert self.defaults is not None
        if asked is not None and asked.level:
            return asked.level
        if not self.defaults.file.level:
            return ""
        taken: Collection[frozenset[int]] = {
            *(categories(parse(each.selinux.mount).level) for each in others() if each.selinux is not None),
            *self._promised.values(),
        }
        return free_level(sensitivity(self.defaults.file.level), taken, secrets.randbelow)

    def require(self, where: str, labels: PodLabels) -> None:
        """InvalidSpec for contexts that the policy does not know; where: what holds the options of the request."""
        for context in (labels.process, labels.mount):
            why = self._why_refused(context) if context else ""
            if why:
                raise InvalidSpec(f"{where}.selinux_options: they make the context {context!r}: {why}")


def _assignments(text: str) -> dict[str, str]:
    """NAME=value lines, quoted or not; comments and what is no assignment are left out."""
    matches = (_LINE.fullmatch(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {match[1]: match[2] for match in matches if match}


def contexts_of(defaults: DefaultLabels) -> dict[str, str | None]:
    """The default contexts as Status shows them."""
    unconfined: Context | None = defaults.unconfined
    return {
        "process": str(defaults.process),
        "file": str(defaults.file),
        "privileged": None if unconfined is None else str(unconfined),
    }
