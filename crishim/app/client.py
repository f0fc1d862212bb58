"""What the client commands use of a running server."""

from __future__ import annotations

from crishim.cri.client import Client as Client
from crishim.cri.client import messages as messages
