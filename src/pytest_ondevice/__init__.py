"""A pytest plugin and conformance suite that gates quantized on-device language models."""
