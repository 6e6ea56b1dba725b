"""What running the artifact takes: memory and time."""
