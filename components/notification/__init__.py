"""Notification: close the run's record, whatever happened."""
