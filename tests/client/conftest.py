"""Fixtures of commands/stage.py for all tests here."""

from commands.stage import config, loaded

__all__ = ["config", "loaded"]
