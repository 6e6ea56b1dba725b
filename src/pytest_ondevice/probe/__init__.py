"""What measures: a runner on the host and a fresh worker process per measurement.

Everything here runs on the device that is measured and imports nothing of pytest. Native code is
loaded by ``engines`` alone, and ``engines`` are imported by the worker alone.
"""
