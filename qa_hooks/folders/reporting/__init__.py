"""A run's curves, pictures, best checkpoint and alarms as one page of HTML."""
