"""Answers for programs: requests that share decoding steps, and an OpenAI-style interface to them."""
