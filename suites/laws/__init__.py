"""Relations across cells: what the study claims, held against every release."""
