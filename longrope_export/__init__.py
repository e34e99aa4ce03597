"""The command line, the reports and the built-in model of longrope-export."""
