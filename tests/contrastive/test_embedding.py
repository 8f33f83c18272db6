"""Embeddings of images and texts equal the model's own in any batch; unreadable inputs are reported."""

import numpy as np
import pytest
import torch

from mmchat.contrastive.directory import load_clip
from mmchat.contrastive.embedding import Embedder
from mmchat.errors import UserError
from mmchat.vision import normalise, preprocess
from tests.clip_kinds import write_clip

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def directory(make_tower, data_dir, tmp_path_factory):
    words = data_dir / "tokenizers" / "llama_like_legacy_false"
    return write_clip(make_tower(), words, tmp_path_factory.mktemp("clip") / "model")


def test_the_models_own_vectors(directory, make_image):
    embedder, model = Embedder.open(directory), load_clip(directory).eval()
    images = [make_image(number, width=30 + number) for number in range(3)]
    pixels = torch.from_numpy(normalise([preprocess(one, embedder.spec)[0] for one in images], embedder.spec))
    with torch.no_grad():
        np.testing.assert_allclose(embedder.images(images), model.encode_image(pixels), **CLOSE)
        texts = ["a cat", "an image of a long red house", ""]
        vectors = embedder.texts(texts)
        for text, vector in zip(texts, vectors, strict=True):
            ids = torch.tensor([embedder.ids(text)])
            np.testing.assert_allclose(vector[None], model.encode_text(ids, torch.ones_like(ids)), **CLOSE)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2
    assert embedder.scale == pytest.approx(1 / 0.07)


def test_many_texts_are_cut_into_batches(directory, monkeypatch):
    embedder = Embedder.open(directory)
    texts = [f"{number} cats" for number in range(5)]
    whole = embedder.texts(texts)
    monkeypatch.setattr("mmchat.contrastive.embedding.TEXTS_AT_A_TIME", 2)
    np.testing.assert_allclose(embedder.texts(texts), whole, **CLOSE)


def test_a_text_that_is_too_long(directory):
    text = "red house " * 30
    with pytest.raises(UserError, match=r"text 'red house .* tokens.* 24.*shorten it, or add --truncate"):
        Embedder.open(directory).texts([text])
    cut = Embedder.open(directory, truncate=True)
    assert len(cut.ids(text)) == 24 and cut.ids(text)[-1] == cut.tokenizer.eos_token_id
