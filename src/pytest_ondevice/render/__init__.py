"""Pictures of a report for people. Everything is drawn from the report's data alone."""
