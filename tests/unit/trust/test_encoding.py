"""Our canonical JSON is RFC 8785's for everything that logs and SETs are signed over."""

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from appliance.trust.encoding import canonical_json

KEYS = st.text(st.characters(max_codepoint=127), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_canonical_json_is_that_of_the_reference_implementation(value):
    assert canonical_json(value) == rfc8785.dumps(value)
