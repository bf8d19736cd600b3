"""What the stock verifier says to every attack of the tables: it refuses all but those named here.

Each of those named is a reason for a check of our own: sigstore-python takes another reading of the same content,
goes by the log's time where a time-stamp does not hold, or looks at less of a certificate or a checkpoint.
"""

import pytest

from tests.unit.trust import test_attacks_on_bundles as bundles
from tests.unit.trust import test_attacks_on_certificates as certificates
from tests.unit.trust import test_attacks_on_logs as logs

OTHER_READINGS = {
    "the signature is in its other (high S) form",
    "the recorded digest algorithm is another",
    "the recorded digest is left out",
    "the alternative spelling of version 0.3",
    "a second content that is null",
    "a key twice, the second hidden from some readers",
    "white space at the end",
    "keys in another order",
    "base64 with loose last bits",
    "base64 with a line break",
    "a number with a leading zero",
    "a number in another script",
    "a gigantic bundle",
    "an entry with a surplus field",
    "an entry with loose spacing",
}
ONE_TIME_IS_ENOUGH = {
    "no inclusion promise",
    "no integrated time",
    "no time-stamp",
    "no time-stamp data",
    "a time-stamp of a foreign authority",
    "a time-stamp by the TLS authority",
    "a time-stamp under the right name by another key",
    "a time-stamp of another signature",
    "a time-stamp with its signature's last bit turned",
    "a time-stamp with its time edited",
    "a time-stamp that was rejected",
    "a time-stamp granted with changes",
    "a time-stamp with a high S signature",
}
LESS_OF_THE_CERTIFICATE = {
    "the zone's root itself",
    "code signing and more",
    "a key that may agree on keys",
    "an unknown extension",
    "two identities",
    "an identity and an address",
    "two issuers that disagree",
    "an issuer that is not text",
    "a certificate of years instead of minutes",
    "an SCT from before the certificate",
    "an SCT from after the certificate",
    "an SCT from before its log",
}
LESS_OF_THE_CHECKPOINT = {
    "a checkpoint of another origin",
    "a checkpoint with a second signature",
    "a checkpoint with words after it",
    "a checkpoint signed under another name",
    "a checkpoint with a high S signature",
    "a checkpoint of a smaller tree",
    "a tree size that the checkpoint does not name",
}
STOCK_ACCEPTS = OTHER_READINGS | ONE_TIME_IS_ENOUGH | LESS_OF_THE_CERTIFICATE | LESS_OF_THE_CHECKPOINT


@pytest.fixture(scope="module")
def stock(zone):
    """sigstore-python with our trusted root as it travels, asked for our release signer."""
    import appliance.trust.tuf_api  # noqa: F401, I001 (before sigstore, see there)
    from sigstore.errors import Error
    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier, policy
    from sigstore_models.trustroot import v1

    verifier = Verifier(trusted_root=TrustedRoot(v1.TrustedRoot.from_json(zone.material.trusted_root)))
    identity = policy.Identity(identity="release-signer@appliance.internal", issuer="https://ca.appliance.internal")

    def accepts(payload, raw):
        try:
            verifier.verify_artifact(payload, Bundle.from_json(raw), identity)
        except (Error, ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
            return False
        return True

    return accepts


@pytest.mark.parametrize("table", [bundles, certificates, logs], ids=["bundles", "certificates", "logs"])
def test_stock_sigstore_refuses_every_attack_but_those_named(table, stock, forger):
    accepted = {name for name in table.ATTACKS if stock(table.PAYLOAD, table.forge(name, forger))}
    assert accepted == STOCK_ACCEPTS & table.ATTACKS.keys()


def test_the_named_attacks_exist(stock, forger):
    assert stock(bundles.PAYLOAD, forger.statement(bundles.PAYLOAD))
    assert bundles.ATTACKS.keys() | certificates.ATTACKS.keys() | logs.ATTACKS.keys() >= STOCK_ACCEPTS
