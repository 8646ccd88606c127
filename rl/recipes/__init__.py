"""The papers as recipes: TOML files, how they are read, what their stages do, and what is told of their results.

`recipe` reads them; `rejection` and `evaluation` are the stages that are no training; `results`, `claims`, `tables`,
`plots` and `report` say what came of them, `dry_run` what would. The command is `rl.reproduce`.
"""
