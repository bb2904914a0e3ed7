"""Processes on machines: who they are, how they meet, and how they end."""
