"""What quantization cost in accuracy, against the reference on the same tokens."""
