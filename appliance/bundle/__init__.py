"""Release bundles: manifest, build, media in volumes, verification, preflight, installation, delta."""
