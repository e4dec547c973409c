"""Recipes: the best mix of types for a budget.

problem.py      what every tensor may become, and exact sizes
source.py       tensors of a file larger than memory
errors.py       what every type costs every tensor, from a sample of rows
sensitivity.py  how much errors of each tensor matter, from weights and activation statistics
probes.py       the same, measured on the model's own output
choose.py       the choice: a knapsack with a proven gap
budget.py       budgets, memories and what lies where
recipe.py       all of it: `make_recipe`
rules.py        types as rules
files.py        recipe files and tables of sensitivities, read and written
text.py         a recipe as the text of its file
speed.py        what products of every type take on this machine
explain.py      what one step more or less for a tensor would do
pareto.py       size against divergence, as a page
"""
