"""The bundled checkpoint: a real PaliGemma of 2.8 million parameters that knows drawn shapes, and the drawer of its pictures."""
