"""The files pocket-m.gguf and pocket-l.gguf; pytest-ondevice finds them here."""
