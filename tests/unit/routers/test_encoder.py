"""The encoder over a small real network: truncation, batches, refusals."""

import numpy as np
import pytest
import yaml

from appliance.artifact import from_files
from appliance.errors import RouterError
from appliance.routers.encoder import load_encoder
from tests.support.routing import encoder_files
from tests.support.training import tiny_encoder, tiny_encoder_artifact


def altered(**metadata):
    files = dict(encoder_files())
    files["encoder.yaml"] = yaml.safe_dump({**yaml.safe_load(files["encoder.yaml"]), **metadata}).encode()
    return from_files(files)


def test_a_batch_gives_the_vectors_of_its_texts_alone():
    encoder = tiny_encoder()
    texts = ["easy", "hard prove the theorem", "", "what is the capital"]
    together = encoder.encode(texts[:2] + texts[3:])
    assert np.array_equal(together[1], encoder.encode([texts[1]])[0])
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_a_long_text_keeps_its_head_and_its_tail():
    encoder = load_encoder(tiny_encoder_artifact(), max_tokens=8)
    ids = encoder.token_ids("easy the is of " + "what " * 500 + "hard prove theorem capital")
    assert ids[:4] == [1, 5, 6, 9]
    assert ids[-4:] == [2, 4, 7, 8]
    assert len(ids) == 8


def test_a_text_of_millions_of_characters_is_not_tokenized_whole():
    encoder = tiny_encoder()
    assert len(encoder.token_ids("easy " + "what " * 2_000_000 + "hard")) == encoder.max_tokens


def test_a_limit_beyond_the_artifacts_is_refused():
    assert load_encoder(tiny_encoder_artifact(), max_tokens=64).max_tokens == 64
    for limit in (2, 129):
        with pytest.raises(RouterError) as refused:
            load_encoder(tiny_encoder_artifact(), max_tokens=limit)
        assert refused.value.code == "ROUTER_ENCODER"


def test_metadata_that_does_not_fit_the_network_is_refused():
    with pytest.raises(RouterError) as refused:
        load_encoder(altered(dimensions=17))
    assert refused.value.code == "ROUTER_ENCODER"


def test_a_network_that_is_no_network_is_refused():
    for broken, code in (("encoder.onnx", "ROUTER_NETWORK"), ("tokenizer.json", "ROUTER_ENCODER")):
        with pytest.raises(RouterError) as refused:
            load_encoder(from_files({**encoder_files(), broken: b"broken"}))
        assert refused.value.code == code
