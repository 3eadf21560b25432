"""Pydantic models of the bodies, one module an endpoint. Types and ranges only, no behaviour."""
