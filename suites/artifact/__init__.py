"""What an artifact is: readable, of the promised type, really quantized, loadable, no larger."""
