// Verifies a bundle with the public @sigstore/verify: node verify.js TRUSTED_ROOT BUNDLE PAYLOAD|- IDENTITY ISSUER
const fs = require("fs");
const { bundleFromJSON } = require("@sigstore/bundle");
const { TrustedRoot } = require("@sigstore/protobuf-specs");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const [trustedRoot, bundle, payload, identity, issuer] = process.argv.slice(2);
const json = (path) => JSON.parse(fs.readFileSync(path, "utf8"));
const verifier = new Verifier(toTrustMaterial(TrustedRoot.fromJSON(json(trustedRoot))), {
  ctlogThreshold: 1,
  tlogThreshold: 1,
  timestampThreshold: 1,
});
const artifact = payload === "-" ? undefined : fs.readFileSync(payload);
const signer = verifier.verify(toSignedEntity(bundleFromJSON(json(bundle)), artifact), {
  subjectAlternativeName: identity,
  extensions: { issuer },
});
console.log("accepted", signer.identity.subjectAlternativeName);
