"""Photo-like scenes of textured, lit objects, drawn with numpy and Pillow."""
