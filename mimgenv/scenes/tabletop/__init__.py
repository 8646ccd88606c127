"""The table-top: solids under a lamp, ray-cast from any side. world.py places them, render.py draws them."""
