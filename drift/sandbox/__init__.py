"""Judges untrusted Python programs: docs/sandbox.md says how, and against what."""

from drift.sandbox.client import VERDICTS, Asserts, Request, Sandbox, Stdio, Verdict

__all__ = ["VERDICTS", "Asserts", "Request", "Sandbox", "Stdio", "Verdict"]
