"""CLIP's kind of vocabulary, small."""

import gzip
from pathlib import Path

import pytest

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "p h", "ph o", "pho t", "phot o</w>", "a</w> b", "o f</w>"]


@pytest.fixture(scope="session")
def merges_file(tmp_path_factory) -> Path:
    """In the layout of bpe_simple_vocab_16e6.txt.gz: 10 merges, so 512 + 10 + 2 tokens."""
    path = tmp_path_factory.mktemp("merges") / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *MERGES, ""]).encode()))
    return path
