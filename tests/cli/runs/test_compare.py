"""`compare`: the table says what the files say, in text, HTML and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from html_pages import links_of
from tiny_stages import tiny_stage

from hafm_lightning import cli
from hafm_lightning.callbacks import CsvLog
from hafm_lightning.cli.runs.compare import score_rows
from hafm_lightning.cli.runs.drawing import overlay
from hafm_lightning.cli.runs.records import differing_settings, names_of, parameters_of, read_records
from hafm_lightning.errors import RequestError
