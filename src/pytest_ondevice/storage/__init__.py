"""What is kept on disk: artifacts, the journal of measurements, baselines, where sources are.

Every file appears whole or not at all. Nothing here loads a runtime or knows of pytest.
"""
