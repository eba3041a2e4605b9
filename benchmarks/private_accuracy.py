RECIPES = {}


def accuracy_table(*a): ...
