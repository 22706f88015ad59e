"""The judge without weights: it recovers the accompaniment, prefers what fits, and follows no order."""

from __future__ import annotations

import numpy as np
import pytest
from coherence_sounds import RATE_HZ  # noqa: F401
