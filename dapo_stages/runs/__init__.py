"""The run folder as a whole: its layout, what is done, and what comes next."""
