"""Hook directories of the node (oci-hooks(5)): which hooks a container gets. Blocking."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from crishim.model.hook import Hooks
from crishim.runtime.documents import Document, Documents
from crishim.spec.hook_documents import HookRule, hooks_of, rule_from

logger = logging.getLogger(__name__)


class HookDirectories:
    """The rules of some directories; a file in a later one replaces a file of the same name in an earlier one."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._documents = Documents(directories, (".json",), rule_from)
        #: documents whose problem was logged
        self._told: frozenset[Document[HookRule]] = frozenset()
        self.directories = tuple(directories)

    def hooks_of(self, annotations: Mapping[str, str], command: str, has_bind_mounts: bool) -> Hooks:
        """The hooks of a container, by the names of their files."""
        by_name: dict[str, Document[HookRule]] = {}
        for document in self._documents.read():
            by_name[os.path.basename(document.path)] = document
        self._tell(frozenset(each for each in by_name.values() if each.value is None))
        rules = [by_name[name].value for name in sorted(by_name)]
        return hooks_of([rule for rule in rules if rule is not None], annotations, command, has_bind_mounts)

    def _tell(self, unusable: frozenset[Document[HookRule]]) -> None:
        for document in unusable - self._told:
            logger.error("the hook %s is not used: %s", document.path, document.problem)
        self._told = unusable
