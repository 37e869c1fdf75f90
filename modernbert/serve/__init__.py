"""Requests of many clients -> answers, over HTTP."""
