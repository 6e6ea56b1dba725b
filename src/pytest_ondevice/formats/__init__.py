"""Readers of model files: headers only, bounded and strict; no runtime is ever loaded."""
