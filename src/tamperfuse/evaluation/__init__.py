"""What a model does: generation, scoring, the judge, capability. Judging works on kept responses, never on live models."""
