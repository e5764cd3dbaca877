"""Certification: exact slip rates, the certificate and behaviour on benign prompts."""
