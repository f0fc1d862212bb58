"""Many layers where overlayfs takes them in one string: Linux before 6.5."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, sys
from crishim.executor import prepare
prepare._OVERLAY_TAKES_LAYERS = False
tree = prepare._overlay([os.fsencode(path) for path in sys.argv[1:]], None, None)
print(len(os.listdir(os.open(".", os.O_RDONLY, dir_fd=tree))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="an overlay needs root")
def test_as_many_layers_as_images_have_fit_into_the_string(tmp_path: Path) -> None:
    layers = [tmp_path / "a-root-directory-with-a-long-name" / "layers" / str(number) for number in range(1, 61)]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / f"of-{layer.name}").write_text("")
    command = [sys.executable, "-c", _SCRIPT, *map(str, layers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "60\n", done.stderr
