"""The sprites: cut-outs of things one names at once. world.py places them, collage.py draws them."""
