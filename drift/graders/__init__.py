"""Grading apart from the trainer.

`parse` reads a mathematical answer, `compare` walks two of them; `math_worker` asks sympy about
what is left, `gym_worker` the scorers of reasoning-gym, both in processes that `pool` keeps.
Nothing here imports torch; sympy and reasoning-gym are imported in the workers only.
"""
