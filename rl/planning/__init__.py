"""What a run will take, before it begins: its memory and its length (`plan`, `footprint`), and one step (`rehearsal`).

In words: `words`. Knows the trainer; knows no recipes.
"""
