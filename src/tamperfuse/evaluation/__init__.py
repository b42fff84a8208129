"""Measuring models: generation, scoring, judging, capability, and the diagnosis of an attack.

Judges work on stored responses, so that several can judge the same ones.
"""
